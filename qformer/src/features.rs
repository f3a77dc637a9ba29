//! Features that are compared by their angle.

use candle_core::{D, DType, Tensor};

use crate::Result;

/// Shortest length that a feature is divided by, as in `torch.nn.functional.normalize`.
const MIN_NORM: f64 = 1e-12;

/// Rows of length 1, f32.
pub(crate) fn normalized(rows: &Tensor) -> Result<Tensor> {
    let rows = rows.to_dtype(DType::F32)?;
    let norms = rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    Ok(rows.broadcast_div(&norms.clamp(MIN_NORM, f64::INFINITY)?)?)
}
