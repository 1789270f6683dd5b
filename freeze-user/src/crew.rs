//! Work on many things at once, by as many threads as there are processors.

use std::sync::LazyLock;
use std::thread;

/// What one thread takes at least: fewer are done before another has begun.
const LEAST: usize = 64;

/// What `work` makes of each item, in their order. Threads begin as their maker is: in its namespaces and real-time class.
pub fn each<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    static PROCESSORS: LazyLock<usize> =
        LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));
    let hands = (items.len() / LEAST).min(*PROCESSORS);
    if hands < 2 {
        return items.iter().map(work).collect();
    }
    let (own, others) = items.split_at(items.len().div_ceil(hands));
    let work = &work;
    thread::scope(|scope| {
        let others: Vec<_> = others
            .chunks(own.len())
            .map(|part| scope.spawn(move || part.iter().map(work).collect::<Vec<R>>()))
            .collect();
        let mut out: Vec<R> = own.iter().map(work).collect();
        for other in others {
            out.extend(
                other
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            );
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        for count in [0, 1, LEAST, 2 * LEAST + 1, 10 * LEAST] {
            let items: Vec<usize> = (0..count).collect();
            let doubled: Vec<usize> = items.iter().map(|n| 2 * n).collect();
            assert_eq!(each(&items, |n| 2 * n), doubled, "{count} items");
        }
    }
}
