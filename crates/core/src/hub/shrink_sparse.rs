//! Tables give back the memory of entries that left. The standard collections keep the capacity of the most entries that
//! they ever had, which a flood of requests decides.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Capacity that is kept in any case.
const SHRINK_ABOVE_CAPACITY: usize = 64;

/// A table shrinks when it uses less than this part of its capacity, to twice what it uses: each entry is moved a constant
/// number of times on average.
const SHRINK_CAPACITY_DIVISOR: usize = 4;

/// Shrinks a map that uses little of its capacity. To be called after entries were removed.
pub fn shrink_sparse_map<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if is_sparse(map.len(), map.capacity()) {
        map.shrink_to(map.len() * 2);
    }
}

/// Shrinks a queue that uses little of its capacity. To be called after entries were removed.
pub fn shrink_sparse_queue<T>(queue: &mut VecDeque<T>) {
    if is_sparse(queue.len(), queue.capacity()) {
        queue.shrink_to(queue.len() * 2);
    }
}

fn is_sparse(length: usize, capacity: usize) -> bool {
    capacity > SHRINK_ABOVE_CAPACITY && length < capacity / SHRINK_CAPACITY_DIVISOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_gives_back_what_a_flood_took_and_keeps_what_it_uses() {
        let mut map: HashMap<u32, u32> = (0..10_000).map(|n| (n, n)).collect();
        let mut queue: VecDeque<u32> = (0..10_000).collect();
        for n in 0..9_990 {
            map.remove(&n);
            queue.pop_front();
            shrink_sparse_map(&mut map);
            shrink_sparse_queue(&mut queue);
        }
        assert_eq!((map.len(), queue.len()), (10, 10));
        assert!((9_990..10_000).all(|n| map.contains_key(&n)));
        assert!(map.capacity() <= 2 * SHRINK_ABOVE_CAPACITY, "{}", map.capacity());
        assert!(queue.capacity() <= 2 * SHRINK_ABOVE_CAPACITY, "{}", queue.capacity());
    }

    #[test]
    fn a_table_that_is_used_keeps_its_capacity() {
        let mut map: HashMap<u32, u32> = (0..10_000).map(|n| (n, n)).collect();
        map.retain(|n, _| n % 2 == 0);
        shrink_sparse_map(&mut map);
        assert!(map.capacity() > 10_000, "{}", map.capacity());
    }
}
