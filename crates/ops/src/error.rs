//! What can go wrong between a model and a device.

use tessera_formats::DType;

/// Errors of loading weights onto a device and of running a step there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device has no kernel for something the model needs; found when the model is loaded.
    #[error("{device} cannot run {what}; {remedy}")]
    Unsupported {
        /// The device's name.
        device: String,
        /// The op, format or shape that is missing.
        what: String,
        /// What the user can do.
        remedy: &'static str,
    },
    /// A weight's bytes do not fit its shape.
    #[error("tensor {tensor}: {rows} x {depth} weights in {dtype} do not fit {bytes} bytes")]
    Shape {
        /// The tensor's name.
        tensor: String,
        /// Its format.
        dtype: DType,
        /// Output features.
        rows: usize,
        /// Reduction length.
        depth: usize,
        /// Bytes found.
        bytes: usize,
    },
    /// A tensor of several matrices is not whole matrices.
    #[error(
        "tensor {tensor}: {rows} rows are not {count} equal matrices; the file is damaged, fetch or convert it again"
    )]
    Stack {
        /// The tensor's name.
        tensor: String,
        /// Output features of all matrices together.
        rows: usize,
        /// How many matrices there should be.
        count: usize,
    },
    /// A switch that picks kernels does not exist.
    #[error("no kernel switch {switch:?}; there are {known}")]
    KernelSwitch {
        /// What was asked for.
        switch: String,
        /// All switches and values.
        known: String,
    },
    /// A scale or a plain weight is NaN or infinite.
    #[error(
        "tensor {tensor}, row {row}: a {what} is not a finite number; the file is damaged, fetch or convert it again"
    )]
    NotFinite {
        /// The tensor's name.
        tensor: String,
        /// The first row that holds such a value.
        row: usize,
        /// `scale` or `weight`.
        what: &'static str,
    },
    /// Saved keys and values are of another cache.
    #[error(
        "a saved page or ring of {found} bytes does not fit a cache where it has {expected}; compute its tokens again with this model"
    )]
    Page {
        /// Bytes of a page of the cache, or of a ring.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// The device's memory is used up.
    #[error("{device} has no room for {bytes} bytes of {what}; use a smaller context or model")]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// What did not fit.
        what: String,
        /// Its size.
        bytes: usize,
    },
    /// The device stopped working in the middle of a step.
    #[error("{device} failed: {reason}")]
    DeviceLost {
        /// The device's name.
        device: String,
        /// The driver's words.
        reason: String,
    },
}
