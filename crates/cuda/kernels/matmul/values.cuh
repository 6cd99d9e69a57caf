// Plain weights as they lie: 16 bytes hold RUN of them.

#define RUN (16 / VALUE_BYTES)
static_assert(VALUE_BYTES == 2 || VALUE_BYTES == 4, "plain numbers");

DEVICE float value_of(const uint4& v, int i) {
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#if VALUE_BYTES == 4
    return __uint_as_float(words[i]);
#elif IS_BF16
    return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
#else
    return half_to_float(words[i / 2] >> (i % 2 * 16));
#endif
}
