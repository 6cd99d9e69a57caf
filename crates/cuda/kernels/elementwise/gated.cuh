// gate(x) * up; math.rs. 0: x by its sigmoid; 1: GELU; 2: SwiGLU of OpenAI's models; 3: the first, both limited.

DEVICE float gated(float x, float up, u32 gate, float limit) {
    if (gate == 0) return x / (1.0f + canonical_exp(-x)) * up;
    if (gate == 1) {
        float cubic = fma(x * x, 0.044715f, 1.0f);
        return x / (1.0f + canonical_exp(-(1.595769f * x * cubic))) * up;
    }
    x = limit < x ? limit : x;
    up = -limit > up ? -limit : up;
    up = limit < up ? limit : up;
    if (gate == 3) return x / (1.0f + canonical_exp(-x)) * up;
    return x / (1.0f + canonical_exp(-(1.702f * x))) * (up + 1.0f);
}
