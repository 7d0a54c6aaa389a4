//! Products of row-major matrices whose parts change with every step.

use crate::bridge::BridgeError;
use crate::compute::cpu::Level;
use crate::compute::matmul::parallel::Matmul;
pub use crate::compute::matmul::parallel::transposed;
use crate::compute::memory::zeros;
use crate::compute::{Linear, Pool, Precision};

/// `A B^T`: rows of `inner` numbers each, a result of one row a row of `A` and one column a row of `B`.
///
/// # Errors
/// [`BridgeError::Compute`] for shapes that do not fit, or where memory is short.
pub fn product(pool: &Pool, a: &[f32], b: &[f32], inner: usize) -> Result<Vec<f32>, BridgeError> {
    let columns = b.len() / inner.max(1);
    let linear = Linear::new(Level::detect(), Precision::F32, b, &zeros(columns)?, inner)?;
    let mut out = zeros::<f32>(a.len() / inner.max(1) * columns)?;
    Matmul::new(pool, inner)?.run(pool, &linear, a, &mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_by_hand() {
        let pool = Pool::new(2).unwrap();
        assert_eq!(
            transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3).unwrap(),
            [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]
        );
        // (1 2; 3 4) (5 6; 7 8)^T = (17 23; 39 53).
        let found = product(&pool, &[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0], 2).unwrap();
        assert_eq!(found, [17.0, 23.0, 39.0, 53.0]);
        assert!(matches!(
            product(&pool, &[1.0; 3], &[1.0; 2], 2),
            Err(BridgeError::Compute(_))
        ));
    }
}
