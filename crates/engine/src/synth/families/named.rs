//! Names of whole models: each stands for a line, whose entries hold where a line that begins with the name has none.

/// A name, its architecture, and the rest of the line.
pub(in crate::synth) static NAMED: [(&str, &str, &str); 1] = [(
    // The shape of DeepSeek V4 Flash, in the formats of its files of two bits a weight: 81 GiB.
    "deepseek4-flash",
    "deepseek4",
    "layers=43,width=4096,head_dim=512,heads=64,vocabulary=129280,context=1048576,experts=256,experts_used=6,\
     expert_feed_forward=2048,format=Q8_0,embedding=F16,ffn_gate_exps=IQ2_XXS,ffn_up_exps=IQ2_XXS,ffn_down_exps=Q2_K",
)];
