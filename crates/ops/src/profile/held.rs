//! What a profiled device holds in place of a device's own weights and tensors: the thing itself and its shape.
//!
//! A [`Linear`] owns its matrix and bias, so those of the device inside cannot be borrowed from one that owns wrappers. They
//! are lent instead: taken out for the time of an op, and put back.

use std::sync::{Mutex, PoisonError};

use super::{Label, Profiled};
use crate::{Compressor, Device, KvLayout, Linear, LinearStack, Router};

/// Something that is lent to one op at a time.
#[derive(Debug)]
struct Held<T>(Mutex<Option<T>>);

impl<T> Held<T> {
    fn new(thing: T) -> Held<T> {
        Held(Mutex::new(Some(thing)))
    }

    fn lend(&self) -> T {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().expect("one step runs at a time")
    }

    fn give_back(&self, thing: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(thing);
    }
}

/// A matrix, or a stack of them.
#[derive(Debug)]
pub struct Weights<T> {
    held: Held<T>,
    pub(super) label: Label,
    /// Matrices, and rows and depth of each.
    pub(super) count: usize,
    pub(super) rows: usize,
    pub(super) depth: usize,
    /// As the file holds them.
    pub(super) bytes: usize,
}

impl<T> Weights<T> {
    pub(super) fn new(inner: T, label: Label, count: usize, source: &crate::MatrixSource) -> Weights<T> {
        let (rows, depth, bytes) = (source.rows / count.max(1), source.depth, source.bytes.len());
        Weights { held: Held::new(inner), label, count, rows, depth, bytes }
    }
}

/// A vector.
#[derive(Debug)]
pub struct Vector<T> {
    held: Held<T>,
    pub(super) len: usize,
}

impl<T> Vector<T> {
    pub(super) fn new(inner: T, len: usize) -> Vector<T> {
        Vector { held: Held::new(inner), len }
    }

    /// Runs an op with the vector inside.
    pub(super) fn with<R>(&self, run: impl FnOnce(&T) -> R) -> R {
        let inner = self.held.lend();
        let result = run(&inner);
        self.held.give_back(inner);
        result
    }
}

/// A table of rows.
#[derive(Debug)]
pub struct Table<T> {
    pub(super) inner: T,
    pub(super) width: usize,
    pub(super) row_bytes: usize,
}

/// Activations: (rows, width).
#[derive(Debug)]
pub struct Tensor<T> {
    pub(super) inner: T,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl<T> Tensor<T> {
    pub(super) fn bytes(&self) -> usize {
        self.rows * self.width * size_of::<f32>()
    }
}

/// A cache of keys and values.
#[derive(Debug)]
pub struct Cache<T> {
    pub(super) inner: T,
    layout: KvLayout,
}

impl<T> Cache<T> {
    pub(super) fn new(inner: T, layout: &KvLayout) -> Cache<T> {
        Cache { inner, layout: layout.clone() }
    }

    /// Bytes that this many rows of an entry take in it.
    pub(super) fn bytes(&self, entry: usize, rows: usize) -> usize {
        let entry = &self.layout.entries[entry];
        rows * entry.page_bytes(self.layout.format) / entry.page_rows()
    }
}

/// Which compressed rows are read.
#[derive(Debug)]
pub struct Selected<T> {
    pub(super) inner: T,
    /// How many of a row, at most.
    pub(super) top_k: usize,
}

/// Where tokens go.
#[derive(Debug)]
pub struct Routed<T> {
    pub(super) inner: T,
    pub(super) tokens: usize,
    /// Tokens times slots.
    pub(super) places: usize,
    /// Experts that have tokens.
    pub(super) touched: usize,
}

/// Runs an op with the projections inside.
pub(super) fn with_linears<D: Device, R, const N: usize>(
    linears: [&Linear<Profiled<D>>; N],
    run: impl FnOnce([&Linear<D>; N]) -> R,
) -> R {
    let lent = linears.map(|l| Linear { matrix: l.matrix.held.lend(), bias: lend(l.bias.as_ref()) });
    let result = run(lent.each_ref());
    for (linear, Linear { matrix, bias }) in linears.into_iter().zip(lent) {
        linear.matrix.held.give_back(matrix);
        give_back(linear.bias.as_ref(), bias);
    }
    result
}

/// As [`with_linears`], for stacks.
pub(super) fn with_stacks<D: Device, R, const N: usize>(
    linears: [&LinearStack<Profiled<D>>; N],
    run: impl FnOnce([&LinearStack<D>; N]) -> R,
) -> R {
    let lent = linears.map(|l| LinearStack { matrices: l.matrices.held.lend(), bias: lend(l.bias.as_ref()) });
    let result = run(lent.each_ref());
    for (linear, LinearStack { matrices, bias }) in linears.into_iter().zip(lent) {
        linear.matrices.held.give_back(matrices);
        give_back(linear.bias.as_ref(), bias);
    }
    result
}

/// Runs an op with the router inside.
pub(super) fn with_router<D: Device, R>(router: &Router<Profiled<D>>, run: impl FnOnce(&Router<D>) -> R) -> R {
    let (bias, factors) = (lend(router.bias.as_ref()), lend(router.factors.as_ref()));
    let lent = Router { routing: router.routing, bias, factors };
    let result = run(&lent);
    give_back(router.bias.as_ref(), lent.bias);
    give_back(router.factors.as_ref(), lent.factors);
    result
}

/// Runs an op with the compressor inside.
pub(super) fn with_compressor<D: Device, R>(
    compressor: &Compressor<Profiled<D>>,
    run: impl FnOnce(&Compressor<D>) -> R,
) -> R {
    let &Compressor { inputs, output, ratio, overlap, head_dim, epsilon, rounding, .. } = compressor;
    let (ape, norm, rope) = (compressor.ape.held.lend(), compressor.norm.held.lend(), compressor.rope.clone());
    let lent = Compressor { inputs, output, ratio, overlap, head_dim, ape, norm, epsilon, rope, rounding };
    let result = run(&lent);
    compressor.ape.held.give_back(lent.ape);
    compressor.norm.held.give_back(lent.norm);
    result
}

/// Runs an op with the vector inside, if there is one.
pub(super) fn with_vector<T, R>(vector: Option<&Vector<T>>, run: impl FnOnce(Option<&T>) -> R) -> R {
    let lent = lend(vector);
    let result = run(lent.as_ref());
    give_back(vector, lent);
    result
}

fn lend<T>(vector: Option<&Vector<T>>) -> Option<T> {
    vector.map(|v| v.held.lend())
}

fn give_back<T>(vector: Option<&Vector<T>>, inner: Option<T>) {
    if let (Some(vector), Some(inner)) = (vector, inner) {
        vector.held.give_back(inner);
    }
}
