//! What may be asked of the sampler, and in which ranges.

/// How to choose tokens. The default is greedy: always the most likely token, without penalties.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 means greedy. At least 0.
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest most likely tokens whose probabilities reach this sum; 1 keeps all. In (0, 1].
    pub top_p: f32,
    /// Keeps tokens at least this fraction as likely as the most likely one; 0 keeps all. In [0, 1].
    pub min_p: f32,
    /// Divides positive logits of tokens already seen, multiplies negative ones (Keskar et al. 2019); 1 changes
    /// nothing. Above 0.
    pub repetition_penalty: f32,
    /// Subtracted from a token's logit once for every time it was seen; 0 changes nothing.
    pub frequency_penalty: f32,
    /// Subtracted from a token's logit once if it was seen; 0 changes nothing.
    pub presence_penalty: f32,
    /// How many of the last tokens the penalties look at; `usize::MAX` means all.
    pub penalty_window: usize,
    /// Added to the logits of these tokens; -infinity bans a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Decides all draws.
    pub seed: u64,
    /// Tokens that end the reply, besides the model's own.
    pub stop_tokens: Vec<u32>,
    /// Asks for log-probabilities: that of the chosen token and of so many most likely ones.
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_window: 64,
            logit_bias: Vec::new(),
            seed: 0,
            stop_tokens: Vec::new(),
            logprobs: None,
        }
    }
}

/// Why no token can be drawn.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum SamplingError {
    #[error("{parameter} is {value}; it must be {range}")]
    Parameter { parameter: &'static str, value: f32, range: &'static str },
    #[error("the logit bias of token {token} is {value}; it must be a finite number, or -inf to ban the token")]
    Bias { token: u32, value: f32 },
    #[error("the logit bias names token {token}, and the vocabulary has {vocabulary} tokens; remove it")]
    BiasToken { token: u32, vocabulary: usize },
    #[error(
        "the model gave token {token} the logit {value}: its weights are damaged (a NaN or infinite scale, perhaps); \
         download or convert the model again"
    )]
    BadLogit { token: u32, value: f32 },
    #[error("no token is left to choose: all logits are -inf; ban fewer tokens by logit bias")]
    NothingLeft,
    #[error("a stop string is empty, and would end every reply at once; remove it")]
    EmptyStopString,
}

impl SamplingParams {
    /// Whether every parameter is in its range.
    ///
    /// # Errors
    /// If one is not.
    pub fn check(&self) -> Result<(), SamplingError> {
        let at_least_0 = 0.0..=f32::MAX;
        let any = f32::MIN..=f32::MAX;
        let rows = [
            ("temperature", self.temperature, at_least_0, "a finite number of at least 0 (0 is greedy)"),
            ("top_p", self.top_p, f32::MIN_POSITIVE..=1.0, "above 0 and at most 1 (1 keeps all tokens)"),
            ("min_p", self.min_p, 0.0..=1.0, "at least 0 and at most 1 (0 keeps all tokens)"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                f32::MIN_POSITIVE..=f32::MAX,
                "a finite number above 0 (1 changes nothing)",
            ),
            ("frequency_penalty", self.frequency_penalty, any.clone(), "a finite number (0 changes nothing)"),
            ("presence_penalty", self.presence_penalty, any, "a finite number (0 changes nothing)"),
        ];
        for (parameter, value, allowed, range) in rows {
            if !allowed.contains(&value) {
                return Err(SamplingError::Parameter { parameter, value, range });
            }
        }
        match self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY) {
            Some(&(token, value)) => Err(SamplingError::Bias { token, value }),
            None => Ok(()),
        }
    }
}
