//! Assigns the tensors of a step to shared memory.
//!
//! Greedy by size (Pisarchyk and Lee, 2020, arXiv:2001.03288): the largest tensor first, each into the best-fitting gap
//! that is free during its lifetime. Rejected: program order, because small tensors blocked large buffers for a long
//! time, and planning a second list over the same memory enlarged it. There is more than one buffer because a dispatch
//! may not write a buffer that it also reads.

use std::cmp::Reverse;
use std::collections::HashMap;

/// A tensor to place.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Identifies the tensor in every list with the same nodes: the index of the first node that uses it, and the
    /// tensor's index among those of that node.
    pub key: (usize, usize),
    /// Bytes.
    pub size: u64,
    /// The last node that uses the tensor.
    pub last_use: usize,
    /// Indices of requests that must be in other buffers, because one dispatch writes one of the two and binds the
    /// other.
    pub conflicts: Vec<usize>,
}

impl Request {
    fn first(&self) -> usize {
        self.key.0
    }
}

/// A tensor's location.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index of the buffer.
    pub buffer: usize,
    /// Offset in bytes.
    pub offset: u64,
}

#[derive(Debug, Clone, Copy)]
struct Occupied {
    offset: u64,
    end: u64,
    first: usize,
    last: usize,
}

/// Buffers shared by lists that run one after the other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layout {
    /// The buffers' sizes in bytes.
    pub buffers: Vec<u64>,
    /// Lists that were already placed, with the places of their requests.
    known: Vec<(Vec<Request>, Vec<Place>)>,
}

impl Layout {
    /// Places all requests of a list, at offsets that are multiples of `alignment`. A request that fits into no buffer
    /// gets a new one of its own size. Two orders are tried, by size alone and by size and lifetime, and the one that
    /// adds fewer bytes is used: neither is always better.
    pub fn place(&mut self, requests: &[Request], alignment: u64) -> Vec<Place> {
        if let Some(places) = self.known.iter().find_map(|(known, places)| places_within(requests, known, places)) {
            return places;
        }
        let duration = |request: &Request| (request.last_use.saturating_sub(request.first()) as f64 + 1.0).sqrt();
        let [first, second] = [false, true].map(|durable| {
            let mut order: Vec<usize> = (0..requests.len()).collect();
            let weight = |request: &Request| {
                if durable { (request.size as f64 * duration(request)) as u64 } else { request.size }
            };
            order.sort_by_key(|&index| (Reverse(weight(&requests[index])), requests[index].first()));
            let mut grown = self.buffers.clone();
            (place_in_order(requests, &order, &mut grown, alignment), grown)
        });
        let bytes = |grown: &[u64]| grown.iter().sum::<u64>();
        let (places, grown) = if bytes(&second.1) < bytes(&first.1) { second } else { first };
        self.buffers = grown;
        self.known.push((requests.to_vec(), places.clone()));
        places
    }
}

/// Reuses the places of a list that was placed before, if `requests` is the same list over fewer tokens: each request
/// has a counterpart that is at least as large, lives at least as long and has at least the same conflicts. The known
/// list may have more requests, since longer sums have partial ones.
fn places_within(requests: &[Request], known: &[Request], places: &[Place]) -> Option<Vec<Place>> {
    let numbers: HashMap<(usize, usize), usize> =
        known.iter().enumerate().map(|(number, request)| (request.key, number)).collect();
    let same: Vec<usize> = requests.iter().map(|request| numbers.get(&request.key).copied()).collect::<Option<_>>()?;
    let within = |(request, &number): (&Request, &usize)| {
        let other = &known[number];
        request.size <= other.size
            && request.last_use <= other.last_use
            && request.conflicts.iter().all(|&index| other.conflicts.contains(&same[index]))
    };
    requests.iter().zip(&same).all(within).then(|| same.iter().map(|&number| places[number]).collect())
}

fn place_in_order(requests: &[Request], order: &[usize], buffers: &mut Vec<u64>, alignment: u64) -> Vec<Place> {
    let mut places: Vec<Option<Place>> = vec![None; requests.len()];
    // Sorted by offset.
    let mut taken: Vec<Vec<Occupied>> = vec![Vec::new(); buffers.len()];
    for &index in order {
        let request = &requests[index];
        let size = request.size.next_multiple_of(alignment);
        let closed: Vec<usize> =
            request.conflicts.iter().filter_map(|&other| places[other]).map(|place| place.buffer).collect();
        let open = (0..buffers.len()).filter(|buffer| !closed.contains(buffer));
        let best_fit =
            open.filter_map(|buffer| Some((best_gap(request, buffers[buffer], &taken[buffer])?, buffer))).min();
        let (offset, buffer) = match best_fit {
            Some(((_, offset), buffer)) => (offset, buffer),
            None => {
                buffers.push(size);
                taken.push(Vec::new());
                (0, buffers.len() - 1)
            }
        };
        let list = &mut taken[buffer];
        let at = list.partition_point(|other| other.offset < offset);
        list.insert(at, Occupied { offset, end: offset + size, first: request.first(), last: request.last_use });
        places[index] = Some(Place { buffer, offset });
    }
    places.into_iter().flatten().collect()
}

/// The best-fitting gap of a buffer that is free during the request's lifetime: its size and offset.
fn best_gap(request: &Request, size: u64, taken: &[Occupied]) -> Option<(u64, u64)> {
    let mut best: Option<(u64, u64)> = None;
    let mut from = 0;
    let mut consider = |from: u64, to: u64| {
        if to >= from + request.size && best.is_none_or(|(gap, _)| to - from < gap) {
            best = Some((to - from, from));
        }
    };
    for other in taken.iter().filter(|other| request.first() <= other.last && other.first <= request.last_use) {
        consider(from, other.offset);
        from = from.max(other.end);
    }
    consider(from, size);
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(of: impl IntoIterator<Item = (u64, usize, usize)>) -> Vec<Request> {
        of.into_iter()
            .enumerate()
            .map(|(number, (size, first, last))| Request {
                key: (first, number),
                size,
                last_use: last,
                conflicts: Vec::new(),
            })
            .collect()
    }

    fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
        a.0 < b.1 && b.0 < a.1
    }

    /// Over many random lists: requests lie inside their buffers and are aligned, no two share bytes at the same time,
    /// conflicting requests have different buffers, and the total is never below the peak of live bytes.
    #[test]
    fn live_tensors_never_overlap() {
        let mut seed = 7u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let (mut held, mut needed) = (0, 0);
        for round in 0..200 {
            let count = 1 + next(60) as usize;
            let mut requests = list((0..count).map(|_| {
                let first = next(40) as usize;
                let largest = 2 << next(9);
                (16 * (1 + next(largest)), first, if next(9) == 0 { usize::MAX } else { first + next(12) as usize })
            }));
            for index in 1..count {
                let other = next(index as u64) as usize;
                requests[index].conflicts.push(other);
                requests[other].conflicts.push(index);
            }
            let before = if round % 2 == 0 { Vec::new() } else { vec![512, 4096] };
            let mut layout = Layout { buffers: before.clone(), ..Layout::default() };
            let places = layout.place(&requests, 256);
            let buffers = &layout.buffers;
            assert_eq!((places.len(), &buffers[..before.len()]), (count, &before[..]));
            // Placing the same list over fewer tokens, without requests that only long lists have, adds no memory.
            let mut fewer: Vec<Request> =
                requests.iter().map(|request| Request { size: request.size.div_ceil(2), ..request.clone() }).collect();
            let gone = fewer.pop().map_or(0, |_| fewer.len());
            fewer.iter_mut().for_each(|request| request.conflicts.retain(|&other| other != gone));
            assert_eq!(layout.clone().place(&fewer, 256), places[..gone]);
            for (index, (a, at)) in requests.iter().zip(&places).enumerate() {
                assert!(at.offset % 256 == 0 && at.offset + a.size <= buffers[at.buffer]);
                assert!(a.conflicts.iter().all(|&other| places[other].buffer != at.buffer));
                for (b, bt) in requests.iter().zip(&places).skip(index + 1) {
                    let together = a.first() <= b.last_use && b.first() <= a.last_use && at.buffer == bt.buffer;
                    assert!(
                        !together || !overlap((at.offset, at.offset + a.size), (bt.offset, bt.offset + b.size)),
                        "{a:?} {at:?}, {b:?} {bt:?}"
                    );
                }
            }
            let live = |moment: usize| {
                requests.iter().filter(|i| i.first() <= moment && moment <= i.last_use).map(|i| i.size).sum::<u64>()
            };
            held += buffers.iter().sum::<u64>();
            needed += (0..60).map(live).max().unwrap_or(0);
        }
        assert!(held >= needed && held < 2 * needed, "{held} bytes held, {needed} needed at the peak");
    }

    #[test]
    fn small_tensors_share_what_a_large_one_left() {
        // Two requests of 1024 bytes at different times, and three of 256 at times between them.
        let mut requests = list([(1024, 0, 1), (1024, 6, 7), (256, 2, 5), (256, 2, 5), (256, 3, 5)]);
        let mut layout = Layout::default();
        let places = layout.place(&requests, 256);
        assert_eq!((layout.buffers, places[3]), (vec![1024], Place { buffer: 0, offset: 256 }));
        // Items in conflict need a second buffer.
        (requests[2].conflicts, requests[3].conflicts) = (vec![3], vec![2]);
        let mut layout = Layout::default();
        layout.place(&requests, 256);
        assert_eq!(layout.buffers, [1024, 256]);
    }
}
