//! Why a device cannot be opened: what is missing, and what to do.

/// Errors of opening a card.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No driver.
    #[error("no NVIDIA driver was found (libcuda.so.1); install the driver of the card, or use the CPU")]
    NoDriver,
    /// No run-time compiler.
    #[error(
        "no CUDA run-time compiler was found (libnvrtc.so.13); install the CUDA 13 toolkit or the Python package \
        nvidia-cuda-nvrtc, and name its folder in TESSERA_NVRTC"
    )]
    NoCompiler,
    /// Fewer cards than asked for.
    #[error("there is no card {ordinal}, there are {count}; name a lower one")]
    NoCard {
        /// The card asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// A card without the instructions that kernels use.
    #[error("{name} has compute capability {major}.{minor}, and kernels need 8.0 (Ampere); use the CPU")]
    TooOld {
        /// The card.
        name: String,
        /// Its compute capability.
        major: i32,
        /// Its compute capability.
        minor: i32,
    },
    /// The driver refuses.
    #[error("the NVIDIA driver failed to {what}: {reason}; see whether nvidia-smi works")]
    Driver {
        /// What was asked of it.
        what: &'static str,
        /// Its words.
        reason: String,
    },
    /// A way to launch kernels that does not exist.
    #[error(
        "TESSERA_CUDA_LAUNCHES is {value:?}; there are graphs, apart, single and serial: set one, or none for graphs"
    )]
    Launches {
        /// What was asked for.
        value: String,
    },
    /// Attention as on a card that is not known.
    #[error("TESSERA_CUDA_ATTENTION is {value:?}; set it to one of {cards}, or unset it")]
    Attention {
        /// What was asked for.
        value: String,
        /// What there is.
        cards: String,
    },
    /// A kernel does not compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
}

/// A kernel that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the CUDA run-time compiler refuses {module} for {arch}; report this: {log}")]
pub struct CompileError {
    /// Which kernel.
    pub module: String,
    /// For which card.
    pub arch: String,
    /// The compiler's words.
    pub log: String,
}
