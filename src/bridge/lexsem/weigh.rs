//! The vocabulary weights `w` of a query: SLR, LLR and CLR, each as the paper has it and as the published code has it
//! where the two differ, and our own.
//!
//! Sparse weights are pairs of token id and weight, ascending and distinct. Ids are those of the text alone: no special
//! token is among them.

/// Token ids and weights, ascending by id, each id once.
pub type Sparse = Vec<(u32, f32)>;

/// The distinct ids, ascending.
pub fn present(ids: &[u32]) -> Vec<u32> {
    let mut present = ids.to_vec();
    present.sort_unstable();
    present.dedup();
    present
}

/// SLR, paper: `w_t = log(1 + max_j 1[t = t_j])`, which is log 2 for a token of the query.
pub fn slr_paper(ids: &[u32]) -> Sparse {
    present(ids)
        .into_iter()
        .map(|id| (id, std::f32::consts::LN_2))
        .collect()
}

/// SLR, code: `w_t = s` for a token of the query, `s` learned.
pub fn slr(ids: &[u32], scale: f32) -> Sparse {
    present(ids).into_iter().map(|id| (id, scale)).collect()
}

/// LLR, code: `a_j = ReLU(u . h_j + c)` for each position, `w_t` the largest of a token's positions. `states` holds a
/// row of `u.len()` numbers for each of `ids`. With each token, the position that it took its weight from.
pub fn llr_positions(ids: &[u32], states: &[f32], u: &[f32], c: f32) -> Vec<(u32, f32, usize)> {
    let mut found: Vec<(u32, f32, usize)> = ids
        .iter()
        .zip(states.chunks_exact(u.len().max(1)))
        .enumerate()
        .map(|(position, (id, state))| {
            let sum: f32 = state.iter().zip(u).map(|(h, u)| h * u).sum();
            (*id, (sum + c).max(0.0), position)
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
    found.dedup_by_key(|entry| entry.0);
    found
}

/// LLR, code: see [`llr_positions`].
pub fn llr(ids: &[u32], states: &[f32], u: &[f32], c: f32) -> Sparse {
    let positions = llr_positions(ids, states, u, c);
    positions.into_iter().map(|(id, weight, _)| (id, weight)).collect()
}

/// LLR, paper: `w_t = log(1 + ReLU(h_CLS U + b)_t)`. `projection` is `U` by token, a row of `state.len()` numbers for
/// each of `shift`; the result has a weight for each row.
pub fn llr_paper(state: &[f32], projection: &[f32], shift: &[f32]) -> Vec<f32> {
    projection
        .chunks_exact(state.len().max(1))
        .zip(shift)
        .map(|(u, b)| {
            let sum: f32 = state.iter().zip(u).map(|(h, u)| h * u).sum();
            (sum + b).max(0.0).ln_1p()
        })
        .collect()
}

/// CLR, code: `w = log(1 + ReLU(logits))` of the vocabulary's logits at the first token; the `most` largest (0 for
/// all).
pub fn clr(logits: &[f32], most: usize) -> Sparse {
    let mut found: Sparse = logits
        .iter()
        .zip(0u32..)
        .filter(|(logit, _)| **logit > 0.0)
        .map(|(logit, id)| (id, logit.ln_1p()))
        .collect();
    if most > 0 && found.len() > most {
        found.select_nth_unstable_by(most, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        found.truncate(most);
        found.sort_unstable_by_key(|entry| entry.0);
    }
    found
}

/// Ours: a token's rarity among the passages, 0 to 1 (1 for one never seen), over the length of all rarities where that
/// is above 1: a long query's part grows as slowly as a random walk, not as its length.
pub fn bag(ids: &[u32], rarity: impl Fn(u32) -> Option<f32>) -> Sparse {
    let weights: Sparse = present(ids)
        .into_iter()
        .map(|id| (id, rarity(id).unwrap_or(1.0)))
        .collect();
    let length = weights
        .iter()
        .map(|(_, weight)| weight * weight)
        .sum::<f32>()
        .sqrt()
        .max(1.0);
    weights.into_iter().map(|(id, weight)| (id, weight / length)).collect()
}

/// The rarity of a token that `holding` of `passages` passages hold: `log((n + 1) / (df + 1)) / log(n + 1)`.
pub fn rarity(passages: usize, holding: u32) -> f32 {
    let all = (passages.max(1) + 1) as f32;
    ((all / (holding as f32 + 1.0)).ln() / all.ln()).clamp(0.0, 1.0)
}
