//! A linear layer, and what usually follows it.
//!
//! In f32 on a CPU the product is this crate's (`crate::product`), in f32 or in
//! 8 bits, and bias, GELU and residual are applied on the way out. Everywhere
//! else the layer is candle's operations.

use std::cell::Cell;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, DType, Device, Layout, Shape, Tensor};

use crate::checkpoint::Weights;
use crate::config::Activation;
use crate::int8::{Int8Matrix, Int8Weight};
use crate::operations::{count_product, timed_tensor};
use crate::product::float::F32Matrix;
use crate::product::{Finish, Norm, Residual};

thread_local! {
    static BY_CANDLE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` by candle's operations alone, as on a GPU: models that are loaded and run inside
/// of it, on this thread, leave this crate's own CPU code out. To compare the two.
pub fn by_candle<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            BY_CANDLE.set(self.0);
        }
    }
    let _restore = Restore(BY_CANDLE.replace(true));
    work()
}

/// Whether this thread is inside of [`by_candle`].
pub(crate) fn is_by_candle() -> bool {
    BY_CANDLE.get()
}

/// Whether tensors like `x` go through this crate's own CPU code.
pub(crate) fn runs_here(x: &Tensor) -> bool {
    has_own_code(x.device(), x.dtype())
}

/// Whether tensors of this dtype go through this crate's own CPU code there.
pub(crate) fn has_own_code(device: &Device, dtype: DType) -> bool {
    device.is_cpu() && dtype == DType::F32 && !is_by_candle()
}

/// `y = x * weight^T + bias`, `weight` being `[outputs, inputs]`.
#[derive(Debug)]
pub(crate) struct Linear {
    kind: Kind,
}

enum Kind {
    Packed(Packed),
    Dense {
        weight_t: Tensor,
        bias: Option<Tensor>,
    },
}

/// A layer whose weights are packed.
pub(crate) struct Packed {
    weight_t: Matrix,
    bias: Option<Vec<f32>>,
}

enum Matrix {
    F32(F32Matrix),
    Int8(Int8Matrix),
}

impl Packed {
    /// Inputs and outputs.
    fn dims(&self) -> (usize, usize) {
        let dims = match &self.weight_t {
            Matrix::F32(weight_t) => weight_t.dims(),
            Matrix::Int8(weight_t) => weight_t.dims(),
        };
        (dims.inputs, dims.outputs)
    }

    /// `x` `[rows, inputs]`, after `norm`, to `output` `[rows, outputs]`.
    pub fn run(
        &self,
        x: &[f32],
        norm: Option<Norm>,
        output: &mut [f32],
        activation: Option<Activation>,
        residual: Residual,
    ) -> candle_core::Result<()> {
        let (inputs, outputs) = self.dims();
        count_product(x.len() / inputs, inputs, outputs);
        let finish = Finish {
            bias: self.bias.as_deref(),
            activation,
            residual,
        };
        match &self.weight_t {
            Matrix::F32(weight_t) => weight_t.multiply(x, norm, output, finish),
            Matrix::Int8(weight_t) => weight_t.multiply(x, norm, output, finish),
        }
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Packed(_) => "Packed",
            Kind::Dense { .. } => "Dense",
        })
    }
}

impl Linear {
    /// Loads `weight` `[outputs, inputs]` and, where there is one, `bias`
    /// `[outputs]`.
    pub fn load(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> crate::Result<Self> {
        let bias = bias.then(|| weights.get("bias", &[outputs])).transpose()?;
        Self::load_with(weights, inputs, outputs, bias)
    }

    /// Loads `weight` `[outputs, inputs]`, for a `bias` `[outputs]` from elsewhere.
    pub fn load_with(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
        bias: Option<Tensor>,
    ) -> crate::Result<Self> {
        if let Some(weight) = weights.int8("weight", [outputs, inputs])? {
            return Ok(Self {
                kind: Kind::Packed(Packed {
                    weight_t: Matrix::Int8(Int8Matrix::new(weight, outputs, inputs)?),
                    bias: bias.map(|bias| bias.to_vec1()).transpose()?,
                }),
            });
        }
        Ok(Self::new(
            &weights.get("weight", &[outputs, inputs])?,
            bias,
        )?)
    }

    /// Loads the layers `names`, all with a bias and from `inputs` to `outputs` values
    /// each, as one whose outputs stand side by side.
    pub fn load_joined(
        weights: &Weights,
        names: &[&str],
        inputs: usize,
        outputs: usize,
    ) -> crate::Result<Self> {
        let mut dense = Vec::with_capacity(names.len());
        let mut biases = Vec::with_capacity(names.len());
        let mut int8: Option<Int8Weight> = None;
        for name in names {
            let weights = weights.pp(name);
            biases.push(weights.get("bias", &[outputs])?);
            match weights.int8("weight", [outputs, inputs])? {
                Some(weight) => match &mut int8 {
                    Some(joined) => {
                        joined.values.extend(weight.values);
                        joined.scales.extend(weight.scales);
                    }
                    None => int8 = Some(weight),
                },
                None => dense.push(weights.get("weight", &[outputs, inputs])?),
            }
        }
        let bias = Tensor::cat(&biases, 0)?;
        match int8 {
            Some(weight) if dense.is_empty() => Ok(Self {
                kind: Kind::Packed(Packed {
                    weight_t: Matrix::Int8(Int8Matrix::new(weight, outputs * names.len(), inputs)?),
                    bias: Some(bias.to_vec1()?),
                }),
            }),
            // Some are stored in 8 bits and some are not: products in f32 suit both.
            Some(_) => {
                let weights = names
                    .iter()
                    .map(|name| weights.pp(name).get("weight", &[outputs, inputs]))
                    .collect::<crate::Result<Vec<_>>>()?;
                Ok(Self::new(&Tensor::cat(&weights, 0)?, Some(bias))?)
            }
            None => Ok(Self::new(&Tensor::cat(&dense, 0)?, Some(bias))?),
        }
    }

    /// From `weight` `[outputs, inputs]` and `bias` `[outputs]`.
    pub fn new(weight: &Tensor, bias: Option<Tensor>) -> candle_core::Result<Self> {
        let kind = if runs_here(weight) {
            let (outputs, inputs) = weight.dims2()?;
            let values = weight.flatten_all()?.to_vec1::<f32>()?;
            Kind::Packed(Packed {
                weight_t: Matrix::F32(F32Matrix::new(&values, outputs, inputs)?),
                bias: bias.map(|bias| bias.to_vec1()).transpose()?,
            })
        } else {
            Kind::Dense {
                weight_t: weight.t()?,
                bias,
            }
        };
        Ok(Self { kind })
    }

    /// This layer on rows in memory, where this crate's own CPU code is to be had.
    pub fn rows(&self) -> Option<&Packed> {
        match &self.kind {
            Kind::Packed(packed) => Some(packed),
            Kind::Dense { .. } => None,
        }
    }

    /// `[..., inputs]` to `[..., outputs]`.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match &self.kind {
            Kind::Packed(packed) => x.contiguous()?.apply_op1_no_bwd(&Product {
                packed,
                activation: None,
            }),
            Kind::Dense { weight_t, bias } => dense(x, weight_t, bias.as_ref()),
        }
    }

    /// `gelu(forward(x))`.
    pub fn forward_gelu(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.forward_activated(x, Activation::Gelu)
    }

    /// `activation(forward(x))`.
    pub fn forward_activated(
        &self,
        x: &Tensor,
        activation: Activation,
    ) -> candle_core::Result<Tensor> {
        match &self.kind {
            Kind::Packed(packed) => x.contiguous()?.apply_op1_no_bwd(&Product {
                packed,
                activation: Some(activation),
            }),
            Kind::Dense { weight_t, bias } => {
                let y = dense(x, weight_t, bias.as_ref())?;
                timed_tensor("GELU", || match activation {
                    Activation::Gelu => y.gelu_erf(),
                    Activation::QuickGelu => &y * candle_nn::ops::sigmoid(&(&y * 1.702)?)?,
                })
            }
        }
    }

    /// `forward(x) + residual`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> candle_core::Result<Tensor> {
        match &self.kind {
            Kind::Packed(packed) => x.contiguous()?.apply_op2_no_bwd(
                &residual.contiguous()?,
                &Product {
                    packed,
                    activation: None,
                },
            ),
            Kind::Dense { weight_t, bias } => dense(x, weight_t, bias.as_ref())? + residual,
        }
    }
}

fn dense(x: &Tensor, weight_t: &Tensor, bias: Option<&Tensor>) -> candle_core::Result<Tensor> {
    let inputs = x.dim(D::Minus1)?;
    let mut shape = x.dims().to_vec();
    // One product over all rows: a batch of products with a shared right side
    // is slower everywhere.
    let rows = x.elem_count().checked_div(inputs).unwrap_or(0);
    count_product(rows, inputs, weight_t.dim(1)?);
    let y = x.reshape((rows, inputs))?.matmul(weight_t)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    if let Some(last) = shape.last_mut() {
        *last = weight_t.dim(1)?;
    }
    y.reshape(shape)
}

struct Product<'a> {
    packed: &'a Packed,
    activation: Option<Activation>,
}

impl Product<'_> {
    /// The layer's output.
    fn run(&self, x: &[f32], shape: &Shape, residual: Residual) -> candle_core::Result<CpuStorage> {
        let mut output = vec![0.0; shape.elem_count()];
        let packed = self.packed;
        packed.run(x, None, &mut output, self.activation, residual)?;
        Ok(CpuStorage::F32(output))
    }

    /// The output's shape, after checking the input's.
    fn shape(&self, input: &Layout) -> candle_core::Result<Shape> {
        let mut dims = input.dims().to_vec();
        let (inputs, outputs) = self.packed.dims();
        match dims.last_mut() {
            Some(last) if *last == inputs => *last = outputs,
            _ => candle_core::bail!("rows of {inputs} expected, found shape {:?}", input.dims()),
        }
        Ok(Shape::from(dims))
    }
}

/// The values of a contiguous tensor.
pub(crate) fn values<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("a contiguous tensor expected, found {layout:?}"),
    }
}

impl CustomOp1 for Product<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let shape = self.shape(layout)?;
        Ok((self.run(values(x, layout)?, &shape, Residual::None)?, shape))
    }
}

impl CustomOp2 for Product<'_> {
    fn name(&self) -> &'static str {
        "linear_add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let shape = self.shape(layout)?;
        if *residual_layout.shape() != shape {
            candle_core::bail!(
                "residual of {shape:?} expected, found {:?}",
                residual_layout.shape()
            );
        }
        let residual = values(residual, residual_layout)?;
        Ok((
            self.run(values(x, layout)?, &shape, Residual::Rows(residual))?,
            shape,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// The same layer in f64, through candle's operations.
    fn portable(weight: &Tensor, bias: Option<&Tensor>) -> Linear {
        let weight = weight.to_dtype(DType::F64).unwrap();
        let bias = bias.map(|bias| bias.to_dtype(DType::F64).unwrap());
        let linear = Linear::new(&weight, bias).unwrap();
        assert!(matches!(linear.kind, Kind::Dense { .. }));
        linear
    }

    #[track_caller]
    fn assert_same(left: &Tensor, right: &Tensor) {
        assert_eq!(left.dims(), right.dims());
        let difference = (left.to_dtype(DType::F64).unwrap() - right).unwrap();
        let difference: f64 = difference
            .abs()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar()
            .unwrap();
        assert!(difference < 1e-4, "{difference}");
    }

    #[test]
    fn packed_and_portable_layers_agree() {
        let device = Device::Cpu;
        for (batch, rows, inputs, outputs) in [
            (1, 1, 8, 8),
            (2, 5, 33, 17),
            (1, 257, 384, 100),
            (3, 32, 600, 1),
        ] {
            let weight = Tensor::randn(0f32, 0.5, (outputs, inputs), &device).unwrap();
            let bias = Tensor::randn(0f32, 1.0, outputs, &device).unwrap();
            let x = Tensor::randn(0f32, 1.0, (batch, inputs, rows), &device).unwrap();
            let x = x.transpose(1, 2).unwrap();
            let residual = Tensor::randn(0f32, 1.0, (batch, rows, outputs), &device).unwrap();
            let (x64, residual64) = (
                x.to_dtype(DType::F64).unwrap(),
                residual.to_dtype(DType::F64).unwrap(),
            );
            for bias in [None, Some(bias)] {
                let portable = portable(&weight, bias.as_ref());
                let packed = Linear::new(&weight, bias).unwrap();
                assert_same(
                    &packed.forward(&x).unwrap(),
                    &portable.forward(&x64).unwrap(),
                );
                for activation in [Activation::Gelu, Activation::QuickGelu] {
                    assert_same(
                        &packed.forward_activated(&x, activation).unwrap(),
                        &portable.forward_activated(&x64, activation).unwrap(),
                    );
                }
                assert_same(
                    &packed.forward_add(&x, &residual).unwrap(),
                    &portable.forward_add(&x64, &residual64).unwrap(),
                );
            }
        }
    }

    #[test]
    fn a_wrong_width_is_an_error() {
        let device = Device::Cpu;
        let weight = Tensor::zeros((4, 8), DType::F32, &device).unwrap();
        let linear = Linear::new(&weight, None).unwrap();
        let x = Tensor::zeros((1, 2, 7), DType::F32, &device).unwrap();
        assert!(linear.forward(&x).is_err());
        let x = Tensor::zeros((1, 2, 8), DType::F32, &device).unwrap();
        assert!(linear.forward_add(&x, &x).is_err());
    }
}
