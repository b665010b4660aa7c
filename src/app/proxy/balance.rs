//! Weighted load balancing: in turn, by fewest active exchanges, by key. Pure.

/// An upstream that can be chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) index: usize,
    /// At least 1.
    pub(super) weight: u64,
    pub(super) active: u64,
    pub(super) hash: u64,
}

/// Smooth weighted round robin: each candidate gets its share, spread evenly over the turns.
/// `credit` belongs to one loop and has a number for every index. Among equal credits the first
/// candidate from `first` on is chosen, so that loops don't all begin with the same one.
pub(super) fn in_turn(
    candidates: impl Iterator<Item = Candidate> + Clone,
    credit: &mut [i64],
    first: usize,
) -> Option<usize> {
    let (mut total, mut best) = (0, None);
    let count = credit.len();
    for Candidate { index, weight, .. } in candidates {
        // Weights are small: 256 × 256 at most.
        let weight = i64::try_from(weight).unwrap_or(i64::MAX);
        credit[index] += weight;
        total += weight;
        let place = (index + count - first % count) % count;
        let rank = (credit[index], std::cmp::Reverse(place), index);
        best = best.max(Some(rank));
    }
    let (.., index) = best?;
    credit[index] -= total;
    Some(index)
}

/// The candidate with the fewest active exchanges for its weight; among equal ones, in turn.
pub(super) fn least_active(
    candidates: impl Iterator<Item = Candidate> + Clone,
    credit: &mut [i64],
    first: usize,
) -> Option<usize> {
    let load = |a: &Candidate, b: &Candidate| {
        let cross = |x: &Candidate, y: &Candidate| u128::from(x.active) * u128::from(y.weight);
        cross(a, b).cmp(&cross(b, a))
    };
    let least = candidates.clone().min_by(load)?;
    in_turn(candidates.filter(|candidate| load(candidate, &least).is_eq()), credit, first)
}

/// Weighted rendezvous hashing: a key gets the same candidate as long as it is there. When a
/// candidate goes, only its own keys move.
pub(super) fn by_key(candidates: impl Iterator<Item = Candidate>, key: u64) -> Option<usize> {
    let score = |candidate: &Candidate| {
        let mixed = mix(key ^ candidate.hash);
        // Above 0 and below 1, with the 53 bits of a float.
        let uniform = ((mixed >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        candidate.weight as f64 / -uniform.ln()
    };
    let scored = candidates.map(|candidate| (score(&candidate), candidate.index));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, index)| index)
}

/// FNV-1a, mixed. Not keyed, and the same in every version: after an upgrade each client keeps its
/// upstream.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// The finalizer of SplitMix64.
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(weights: &[u64]) -> Vec<Candidate> {
        let candidate = |(index, weight): (usize, &u64)| Candidate {
            index,
            weight: *weight,
            active: 0,
            hash: hash(format!("http://10.0.0.{index}:80").as_bytes()),
        };
        weights.iter().enumerate().map(candidate).collect()
    }

    fn turns(candidates: &[Candidate], first: usize, count: usize) -> Vec<usize> {
        let mut credit = vec![0; 3];
        let next = |_| in_turn(candidates.iter().copied(), &mut credit, first).unwrap();
        (0..count).map(next).collect()
    }

    #[test]
    fn turns_are_by_weight_and_spread() {
        assert_eq!(turns(&candidates(&[5, 1, 1]), 0, 7), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(turns(&candidates(&[1, 1, 1]), 1, 6), [1, 2, 0, 1, 2, 0]);
        assert_eq!(turns(&candidates(&[1, 1, 1]), 7, 3), [1, 2, 0]);
        assert_eq!(turns(&candidates(&[1, 1, 1])[1..2], 0, 2), [1, 1]);
        assert_eq!(in_turn([].into_iter(), &mut [0], 0), None);
    }

    #[test]
    fn the_least_active_for_its_weight_is_chosen_and_equals_take_turns() {
        let mut list = candidates(&[1, 2, 1]);
        let mut credit = vec![0; 3];
        let mut counts = [0; 3];
        for _ in 0..400 {
            let index = least_active(list.iter().copied(), &mut credit, 0).unwrap();
            list[index].active += 1;
            counts[index] += 1;
        }
        assert_eq!(counts, [100, 200, 100]);
        list[2].active -= 50;
        for _ in 0..50 {
            let index = least_active(list.iter().copied(), &mut credit, 0).unwrap();
            assert_eq!(index, 2);
            list[2].active += 1;
        }
        // Without active exchanges: in turn, and not always the first.
        let idle = candidates(&[1, 1, 1]);
        let mut credit = vec![0; 3];
        let mut next = || least_active(idle.iter().copied(), &mut credit, 0).unwrap();
        let mut three = [next(), next(), next()];
        three.sort_unstable();
        assert_eq!(three, [0, 1, 2]);
    }

    #[test]
    fn only_the_keys_of_a_candidate_that_goes_move_and_shares_are_by_weight() {
        let all = candidates(&[1, 2, 1, 4]);
        let choose = |list: &[Candidate], key: u64| by_key(list.iter().copied(), mix(key)).unwrap();
        let mut counts = [0_i32; 4];
        for key in 0..80_000 {
            let chosen = choose(&all, key);
            counts[chosen] += 1;
            for gone in 0..4 {
                let rest: Vec<_> = all.iter().filter(|c| c.index != gone).copied().collect();
                assert!(gone == chosen || choose(&rest, key) == chosen, "{key} moved");
            }
            // A candidate with a higher weight takes keys, and loses none.
            let mut more = all.clone();
            more[0].weight = 2;
            assert!([0, chosen].contains(&choose(&more, key)));
        }
        for (count, share) in counts.iter().zip([10_000, 20_000, 10_000, 40_000]) {
            assert!((count - share).abs() < 500, "{counts:?}");
        }
    }

    #[test]
    fn hashes_stay_as_they_are() {
        // Other values would move every client to another upstream at an upgrade.
        assert_eq!(hash(b""), mix(0xcbf2_9ce4_8422_2325));
        assert_eq!(hash(b"a"), mix(0xaf63_dc4c_8601_ec8c));
        assert_ne!(hash(b"ab"), hash(b"ba"));
    }
}
