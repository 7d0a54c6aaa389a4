//! Vectors that grow where a pass is larger than those before.

/// The first `count` elements of a vector that is at least as long afterwards.
pub(super) fn sized(elements: &mut Vec<f32>, count: usize) -> &mut [f32] {
    if elements.len() < count {
        elements.resize(count, 0.0);
    }
    &mut elements[..count]
}
