//! Curves over the size of memory, drawn as SVG with logarithmic axes.

use super::sample::number;
use std::fmt::Write;

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 460.0;
/// The drawing within: left, right, top, bottom.
const FRAME: (f64, f64, f64, f64) = (70.0, 540.0, 50.0, 400.0);

/// Colours that people who see few can still tell apart (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#666666"];

/// A figure: what is on its axes, and its curves in the order of their first points.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    title: &'static str,
    vertical: &'static str,
    curves: Vec<(String, Vec<(f64, f64)>)>,
}

impl Figure {
    pub(crate) fn new(title: &'static str, vertical: &'static str) -> Figure {
        Figure {
            title,
            vertical,
            curves: Vec::new(),
        }
    }

    /// Adds a point; what is not positive has no place on these axes.
    pub(crate) fn point(&mut self, curve: &str, mib: u64, y: f64) {
        if mib == 0 || y <= 0.0 {
            return;
        }
        let point = (mib as f64, y);
        match self.curves.iter_mut().find(|(name, _)| name == curve) {
            Some((_, points)) => points.push(point),
            None => self.curves.push((curve.into(), vec![point])),
        }
    }

    /// The value of a curve at a size.
    pub(crate) fn at(&self, curve: &str, mib: u64) -> Option<f64> {
        let (_, points) = self.curves.iter().find(|(name, _)| name == curve)?;
        points.iter().find(|p| p.0 == mib as f64).map(|p| p.1)
    }

    /// The picture, or `None` if there is nothing to show.
    pub(crate) fn svg(&self) -> Option<String> {
        let points = || self.curves.iter().flat_map(|(_, points)| points);
        let horizontal = Axis::over(points().map(|p| p.0), 2.0, (FRAME.0, FRAME.1))?;
        let vertical = Axis::over(points().map(|p| p.1), 10.0, (FRAME.3, FRAME.2))?;
        let mut out = String::new();
        // Writing into a string cannot fail.
        let _ = self.draw(&mut out, &horizontal, &vertical);
        Some(out)
    }

    fn draw(&self, out: &mut String, x: &Axis, y: &Axis) -> std::fmt::Result {
        let (left, right, top, bottom) = FRAME;
        writeln!(
            out,
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">
<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>
<text x="{left}" y="28" font-size="16">{}</text>"##,
            escape(self.title)
        )?;
        for mark in x.marks() {
            let at = x.place(mark);
            writeln!(
                out,
                r##"<path d="M{at:.1} {top}V{bottom}" stroke="#dddddd"/><text x="{at:.1}" y="{}" text-anchor="middle">{mark}</text>"##,
                bottom + 18.0
            )?;
        }
        for mark in y.marks() {
            let at = y.place(mark);
            writeln!(
                out,
                r##"<path d="M{left} {at:.1}H{right}" stroke="#dddddd"/><text x="{}" y="{:.1}" text-anchor="end">{}</text>"##,
                left - 6.0,
                at + 4.0,
                short(mark)
            )?;
        }
        writeln!(
            out,
            r##"<rect x="{left}" y="{top}" width="{}" height="{}" fill="none" stroke="#333333"/>
<text x="{}" y="{}" text-anchor="middle">resident memory, MiB</text>
<text transform="translate(18 {}) rotate(-90)" text-anchor="middle">{}</text>"##,
            right - left,
            bottom - top,
            (left + right) / 2.0,
            bottom + 42.0,
            (top + bottom) / 2.0,
            escape(self.vertical)
        )?;
        for (number, (name, points)) in self.curves.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let mut places: Vec<(f64, f64)> = points.iter().map(|p| (x.place(p.0), y.place(p.1))).collect();
            places.sort_by(|a, b| a.0.total_cmp(&b.0));
            let line: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            writeln!(
                out,
                r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
                line.join(" ")
            )?;
            for (px, py) in places {
                writeln!(
                    out,
                    r#"<circle cx="{px:.1}" cy="{py:.1}" r="3.5" fill="{colour}"/>"#
                )?;
            }
            let at = top + 14.0 + 22.0 * number as f64;
            writeln!(
                out,
                r#"<path d="M{} {at}h20" stroke="{colour}" stroke-width="3"/><text x="{}" y="{}">{}</text>"#,
                right + 12.0,
                right + 38.0,
                at + 4.0,
                escape(name)
            )?;
        }
        writeln!(out, "</svg>")
    }
}

/// A logarithmic axis from one power of its base to another.
#[derive(Debug)]
struct Axis {
    base: f64,
    first: i32,
    last: i32,
    ends: (f64, f64),
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone, base: f64, ends: (f64, f64)) -> Option<Axis> {
        let power = |value: f64| value.ln() / base.ln();
        let least = values.clone().map(power).reduce(f64::min)?;
        let most = values.map(power).reduce(f64::max)?;
        // A hair, so that a power of the base is an end and not just beyond one.
        let (first, last) = ((least + 1e-9).floor() as i32, (most - 1e-9).ceil() as i32);
        Some(Axis {
            base,
            first,
            last: last.max(first + 1),
            ends,
        })
    }

    fn place(&self, value: f64) -> f64 {
        let part = (value.ln() / self.base.ln() - f64::from(self.first)) / f64::from(self.last - self.first);
        self.ends.0 + (self.ends.1 - self.ends.0) * part
    }

    /// The powers of the base, or every so many of them that they do not crowd.
    fn marks(&self) -> impl Iterator<Item = f64> + '_ {
        let step = 1 + (self.last - self.first) as usize / 9;
        (self.first..=self.last).step_by(step).map(|n| self.base.powi(n))
    }
}

/// A power of ten without zeros that say nothing.
fn short(n: f64) -> String {
    match n {
        1.0.. => format!("{n:.0}"),
        0.0009.. => {
            let text = number(n);
            text.trim_end_matches('0').to_string()
        }
        _ => format!("{n:.0e}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_lies_where_its_numbers_say() {
        let axis = Axis::over([1.0, 1024.0].into_iter(), 2.0, (0.0, 100.0)).unwrap();
        assert_eq!((axis.first, axis.last), (0, 10));
        assert!((axis.place(32.0) - 50.0).abs() < 1e-9);
        let flat = Axis::over([0.2].into_iter(), 10.0, (400.0, 0.0)).unwrap();
        assert_eq!((flat.first, flat.last), (-1, 0));
        assert!((flat.place(1.0)).abs() < 1e-9, "the vertical axis grows upwards");
    }

    #[test]
    fn every_curve_is_in_the_picture_and_in_its_legend() {
        let mut figure = Figure::new("Pause", "ms");
        assert_eq!(figure.svg(), None);
        figure.point("freeze", 1, 0.2);
        figure.point("criu <4>", 1, 4.8);
        figure.point("freeze", 1024, 0.3);
        figure.point("freeze", 64, 0.0);
        let svg = figure.svg().unwrap();
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 3, "zero has no logarithm");
        assert!(svg.contains(">freeze</text>") && svg.contains(">criu &lt;4&gt;</text>"));
    }

    #[test]
    fn marks_are_short() {
        assert_eq!(
            [0.001, 0.01, 0.1, 1.0, 1000.0].map(short),
            ["0.001", "0.01", "0.1", "1", "1000"]
        );
    }
}
