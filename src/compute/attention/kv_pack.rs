//! Keys and values of a head as panels: the right sides of an attention's two products.

use crate::compute::cpu::simd::Simd;

/// Keys as panels of the right side of `Q K^T`: panel, then number of the head, then key. Missing keys are zero.
///
/// # Safety
/// `from` has `length` rows of `width` elements, `stride` apart; `to` holds `length` rounded up to panels, times `width`.
#[inline(always)]
pub unsafe fn pack_keys<S: Simd>(from: *const f32, stride: usize, length: usize, width: usize, to: *mut f32) {
    // Four keys at a time: rows are read in order, and four elements are written at once.
    for key in (0..length.next_multiple_of(S::COLUMNS)).step_by(4) {
        let present = length.saturating_sub(key).min(4);
        // SAFETY: inside the ranges that the caller promises; panels have a multiple of four columns.
        unsafe {
            let target = to.add(key / S::COLUMNS * width * S::COLUMNS + key % S::COLUMNS);
            let source = from.wrapping_add(key * stride);
            for i in 0..width {
                let elements: [f32; 4] = if present == 4 {
                    std::array::from_fn(|next| source.add(next * stride + i).read())
                } else {
                    std::array::from_fn(|next| {
                        if next < present {
                            source.add(next * stride + i).read()
                        } else {
                            0.0
                        }
                    })
                };
                target.add(i * S::COLUMNS).cast::<[f32; 4]>().write_unaligned(elements);
            }
        }
    }
}

/// Values as panels of the right side of `P V`: panel, then token, then number of the head. Missing elements are zero.
///
/// # Safety
/// `from` has `length` rows of `width` elements, `stride` apart; `to` holds `width` rounded up to panels, times `length`.
#[inline(always)]
pub unsafe fn pack_values<S: Simd>(from: *const f32, stride: usize, length: usize, width: usize, to: *mut f32) {
    for panel in 0..width.div_ceil(S::COLUMNS) {
        for token in 0..length {
            for part in 0..2 {
                let column = panel * S::COLUMNS + part * S::LANES;
                let lanes = width.saturating_sub(column).min(S::LANES);
                // SAFETY: inside the ranges that the caller promises; no lane beyond `width` is read.
                unsafe {
                    let x = S::load_first(from.wrapping_add(token * stride + column), lanes);
                    S::store(to.add((panel * length + token) * S::COLUMNS + part * S::LANES), x);
                }
            }
        }
    }
}
