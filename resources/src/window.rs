//! Pools of small numbers: GSIs, memslots.

use std::sync::{Mutex, PoisonError};

use vm_allocator::IdAllocator;

/// Every number of the pool is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {count} numbers from {first} are in use")]
pub struct PoolEmpty {
    first: u32,
    count: u64,
}

/// Numbers to lend, lowest first. Shared between threads; the lock is a leaf.
#[derive(Debug)]
pub struct IdPool {
    empty: PoolEmpty,
    /// `None` for a pool that never had a number.
    ids: Mutex<Option<IdAllocator>>,
}

impl IdPool {
    /// `first` to `last`, both inside; a pool without numbers when `last < first`.
    pub fn new(first: u32, last: u32) -> Self {
        let count = (u64::from(last) + 1).saturating_sub(u64::from(first));
        let ids = Mutex::new(IdAllocator::new(first, last).ok());
        Self { empty: PoolEmpty { first, count }, ids }
    }

    /// Takes one.
    pub fn allocate(&self) -> Result<u32, PoolEmpty> {
        // The allocator changes its state in one step, so a panic elsewhere under the lock leaves it whole.
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.as_mut().and_then(|ids| ids.allocate_id().ok()).ok_or(self.empty)
    }

    /// Gives one back; `false` when it was not taken.
    pub fn free(&self, id: u32) -> bool {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.as_mut().is_some_and(|ids| ids.free_id(id).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, thread};

    use super::*;

    #[test]
    fn pool_exhausted_says_of_how_many() {
        let pool = IdPool::new(24, 25);
        assert_eq!((pool.allocate(), pool.allocate()), (Ok(24), Ok(25)));
        assert_eq!(pool.allocate().unwrap_err().to_string(), "all 2 numbers from 24 are in use");
    }

    #[test]
    fn pool_freed_number_is_lent_again() {
        let pool = IdPool::new(0, 1);
        let (first, _second) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        assert!(pool.free(first));
        assert_eq!(pool.allocate(), Ok(first));
    }

    #[test]
    fn pool_refuses_to_take_back_what_it_did_not_lend() {
        let pool = IdPool::new(24, 4095);
        assert!(!pool.free(24) && !pool.free(3));
        let id = pool.allocate().unwrap();
        assert!(pool.free(id) && !pool.free(id));
    }

    #[test]
    fn pool_of_reversed_bounds_is_empty() {
        let pool = IdPool::new(5, 4);
        assert!(pool.allocate().is_err());
        assert!(!pool.free(5));
    }

    #[test]
    fn pool_shared_by_threads_never_lends_twice() {
        let pool = IdPool::new(24, 24 + 399);
        let lent: Vec<u32> = thread::scope(|scope| {
            let take = || (0..100).map(|_| pool.allocate().unwrap()).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(lent.iter().collect::<HashSet<_>>().len(), 400);
        assert!(pool.allocate().is_err());
    }
}
