//! Where others look into a forward pass, or change it. An unset hook costs nothing.

/// Told of the residual stream before a layer (after the last one: `layer` is their number), rows of `hidden` numbers,
/// one a token of the pass; what is written there goes on.
pub type Residual<'a> = &'a mut dyn FnMut(usize, &mut [f32]);
/// Told of the attention of the last token of the pass: layer, head, and a weight for each position from the first that
/// it sees.
pub type Attention<'a> = &'a mut dyn FnMut(usize, usize, &[f32]);
/// Told of the keys before their rotation: layer, rows of `key_heads * head_width` numbers.
pub type Keys<'a> = &'a mut dyn FnMut(usize, &mut [f32]);

/// What a pass over one sequence shows and lets change. Input embeddings are no hook: a prompt has vectors in the place of
/// tokens where it wants them.
#[derive(Default)]
pub struct Hooks<'a> {
    pub residual: Option<Residual<'a>>,
    pub attention: Option<Attention<'a>>,
    /// A factor for each head of each layer, `layers * heads`: what a head adds is multiplied by it.
    pub head_factors: Option<&'a [f32]>,
    pub keys: Option<Keys<'a>>,
    /// Positions of the pass's tokens for the rotation, instead of those that follow what is kept.
    pub positions: Option<&'a [u32]>,
}

/// Changes the logits of a step before a token is chosen: the tokens of the answer so far, and the logits.
pub type Logits = Box<dyn FnMut(&[u32], &mut [f32]) + Send>;
/// The tokens that a step may choose, by the answer so far; `None` for all.
pub type Allowed = Box<dyn FnMut(&[u32]) -> Option<Vec<u32>> + Send>;

/// What an answer lets change at each of its steps.
#[derive(Default)]
pub struct StepHooks {
    pub logits: Option<Logits>,
    pub allowed: Option<Allowed>,
}
