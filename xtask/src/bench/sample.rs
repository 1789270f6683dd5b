//! Numbers measured again and again, what they are compared with, and the tables they make.

use super::machine::memory_kib;
use serde_json::{Value, json};

/// What was measured, sorted; there is at least one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    /// `None` if nothing was measured.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Sample> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        (!values.is_empty()).then_some(Sample(values))
    }

    pub(crate) fn median(&self) -> f64 {
        let (n, half) = (self.0.len(), self.0.len() / 2);
        match n % 2 {
            0 => (self.0[half - 1] + self.0[half]) / 2.0,
            _ => self.0[half],
        }
    }

    /// The smallest value that at least 99 of 100 do not exceed: below 100 values it is the largest.
    pub(crate) fn p99(&self) -> f64 {
        self.0[(self.0.len() * 99).div_ceil(100) - 1]
    }

    pub(crate) fn max(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    fn json(&self) -> Value {
        json!({ "median": self.median(), "p99": self.p99(), "max": self.max(), "n": self.count() })
    }
}

/// What is to be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    /// The median.
    AtMost(f64),
    /// The median.
    AtLeast(f64),
    P99AtMost(f64),
}

impl Goal {
    /// What of the sample it is about, whether that is to be small, and the limit.
    fn parts(self, sample: &Sample) -> (f64, bool, f64) {
        match self {
            Goal::AtMost(limit) => (sample.median(), true, limit),
            Goal::AtLeast(limit) => (sample.median(), false, limit),
            Goal::P99AtMost(limit) => (sample.p99(), true, limit),
        }
    }

    fn reached(self, sample: &Sample) -> bool {
        match self.parts(sample) {
            (value, true, limit) => value <= limit,
            (value, false, limit) => value >= limit,
        }
    }

    fn about(self) -> &'static str {
        match self {
            Goal::P99AtMost(_) => "p99 ",
            _ => "",
        }
    }

    fn text(self, sample: &Sample) -> String {
        let word = if self.reached(sample) { "yes" } else { "no" };
        let (_, small, limit) = self.parts(sample);
        format!(
            "{}{} {limit}: {word}",
            self.about(),
            if small { '≤' } else { '≥' }
        )
    }

    fn json(self, sample: &Sample) -> Value {
        let (value, small, limit) = self.parts(sample);
        let kind = if small { "at_most" } else { "at_least" };
        let about = if matches!(self, Goal::P99AtMost(_)) {
            "p99"
        } else {
            "median"
        };
        json!({ "of": about, kind: limit, "value": value, "reached": self.reached(sample) })
    }
}

/// One line of a table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    ours: Sample,
    peer: Option<Sample>,
    goals: Vec<Goal>,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, unit: &'static str, ours: Sample) -> Row {
        Row {
            what: what.into(),
            unit,
            ours,
            peer: None,
            goals: Vec::new(),
        }
    }

    /// The same thing done by the peer in the same run, if it could be.
    pub(crate) fn peer(mut self, peer: Option<Sample>) -> Row {
        self.peer = peer;
        self
    }

    pub(crate) fn goals(mut self, goals: &[Goal]) -> Row {
        self.goals.extend(goals);
        self
    }

    fn cells(&self) -> Vec<String> {
        let median = self.ours.median();
        let peer = self.peer.as_ref().map(Sample::median);
        let goals: Vec<String> = self.goals.iter().map(|g| g.text(&self.ours)).collect();
        vec![
            self.what.clone(),
            self.unit.into(),
            number(median),
            number(self.ours.p99()),
            number(self.ours.max()),
            self.ours.count().to_string(),
            peer.map(number).unwrap_or_default(),
            peer.filter(|_| median > 0.0)
                .map(|p| number(p / median))
                .unwrap_or_default(),
            goals.join(", "),
        ]
    }

    fn json(&self) -> Value {
        let median = self.ours.median();
        json!({
            "what": self.what,
            "unit": self.unit,
            "ours": self.ours.json(),
            "peer": self.peer.as_ref().map(Sample::json),
            "peer_over_ours": self.peer.as_ref().filter(|_| median > 0.0).map(|p| p.median() / median),
            "goals": self.goals.iter().map(|g| g.json(&self.ours)).collect::<Vec<_>>(),
        })
    }

    /// The goals that were missed, a sentence each.
    fn missed(&self) -> impl Iterator<Item = String> + '_ {
        let missed = self.goals.iter().filter(|g| !g.reached(&self.ours));
        missed.map(|goal| {
            let (value, small, limit) = goal.parts(&self.ours);
            format!(
                "{}: {}{} {unit} instead of at {} {limit} {unit}",
                self.what,
                goal.about(),
                number(value),
                if small { "most" } else { "least" },
                unit = self.unit
            )
        })
    }
}

/// A table with a heading, and what is to be said in words.
#[derive(Clone, Debug, Default)]
pub(crate) struct Section {
    pub(crate) title: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) notes: Vec<String>,
}

impl Section {
    pub(crate) fn new(title: impl Into<String>) -> Section {
        Section {
            title: title.into(),
            ..Section::default()
        }
    }

    /// Adds a line, if anything was measured for it.
    pub(crate) fn row(&mut self, row: Option<Row>) {
        self.rows.extend(row);
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Whether so many MiB of memory are free, without which the kernel would end what is measured; noted if not.
    pub(crate) fn has_room(&mut self, wanted: u64) -> bool {
        let free = memory_kib("MemAvailable") >> 10;
        if wanted > free {
            self.note(format!(
                "Not measured: it takes {wanted} MiB of free memory, and there are {free}."
            ));
        }
        wanted <= free
    }

    /// As markdown, aligned so that it can be read as it is.
    pub(crate) fn markdown(&self, peer: &str) -> String {
        let mut out = format!("## {}\n\n", self.title);
        if !self.rows.is_empty() {
            let ratio = format!("{peer} ÷ freeze");
            let head = ["", "unit", "median", "p99", "max", "n", peer, &ratio, "goal"].map(String::from);
            let rows: Vec<Vec<String>> = self.rows.iter().map(Row::cells).collect();
            out += &table(&head, &rows);
            out.push('\n');
        }
        for note in &self.notes {
            out += &format!("{note}\n\n");
        }
        out
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "title": self.title,
            "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }

    /// The goals that were missed, a sentence each.
    pub(crate) fn missed(&self) -> impl Iterator<Item = String> + '_ {
        let of_row = |row| Row::missed(row).map(|line| format!("{}: {line}", self.title));
        self.rows.iter().flat_map(of_row)
    }
}

/// A markdown table whose columns are aligned; those that are empty all the way down are left out.
fn table(head: &[String], rows: &[Vec<String>]) -> String {
    let used: Vec<usize> = (0..head.len())
        .filter(|column| rows.iter().any(|row| !row[*column].is_empty()))
        .collect();
    let head: Vec<&String> = used.iter().map(|column| &head[*column]).collect();
    let rows: Vec<Vec<&String>> = rows
        .iter()
        .map(|row| used.iter().map(|column| &row[*column]).collect())
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column]).chain([head[column]]);
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    // What it is, its unit, and the goal; all others are numbers.
    let text = |column: usize| used[column] < 2 || used[column] == 8;
    let line = |cells: &[&String]| {
        let cells: Vec<String> = cells
            .iter()
            .enumerate()
            .map(|(column, cell)| match text(column) {
                true => format!("{cell:<0$}", widths[column]),
                false => format!("{cell:>0$}", widths[column]),
            })
            .collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule: Vec<String> = widths
        .iter()
        .enumerate()
        .map(|(column, width)| match text(column) {
            true => "-".repeat(*width),
            false => format!("{}:", "-".repeat(width - 1)),
        })
        .collect();
    let rows: String = rows.iter().map(|row| line(row)).collect();
    line(&head) + &line(&rule.iter().collect::<Vec<_>>()) + &rows
}

/// Three digits that mean something.
pub(crate) fn number(n: f64) -> String {
    match n.abs() {
        0.0 => "0".into(),
        a if a >= 100.0 => format!("{n:.0}"),
        a if a >= 10.0 => format!("{n:.1}"),
        a if a >= 1.0 => format!("{n:.2}"),
        a if a >= 0.001 => format!("{n:.3}"),
        _ => format!("{n:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let hundred = Sample::of((1..=100).rev().map(f64::from)).unwrap();
        assert_eq!(
            (hundred.median(), hundred.p99(), hundred.max()),
            (50.5, 99.0, 100.0)
        );
        let three = Sample::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((three.median(), three.p99(), three.max()), (2.0, 3.0, 3.0));
        assert_eq!(Sample::of([]), None);
    }

    #[test]
    fn a_table_shows_what_was_measured_and_leaves_the_rest_empty() {
        let mut section = Section::new("64 MiB");
        let ours = Sample::of([0.5, 0.25, 1.0]);
        section.row(
            ours.clone()
                .map(|s| Row::new("pause", "ms", s).peer(Sample::of([48.0]))),
        );
        section.row(ours.map(|s| Row::new("pause, seen", "ms", s).goals(&[Goal::AtMost(0.3)])));
        let text = section.markdown("criu 4.1");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "## 64 MiB");
        assert_eq!(
            lines[4],
            "| pause       | ms   |  0.500 | 1.00 | 1.00 |   3 |     48.0 |              96.0 |           |"
        );
        assert_eq!(
            lines[5],
            "| pause, seen | ms   |  0.500 | 1.00 | 1.00 |   3 |          |                   | ≤ 0.3: no |"
        );
        assert_eq!(
            section.missed().collect::<Vec<_>>(),
            ["64 MiB: pause, seen: 0.500 ms instead of at most 0.3 ms"]
        );
    }
}
