// Codes of a Q8_0 cache as f16.

// Four codes times their scale, which is an f16 twice over; one rounding each. A code's byte with its sign turned makes the last digits
// of a number beyond 1024.
DEVICE uint2 halves_of_codes(u32 codes, u32 scales) {
    const u32 bytes = codes ^ 0x80808080u;
    const u32 low = add_halves(__byte_perm(bytes, 0x64646464u, 0x4140), 0xE480E480u);
    const u32 high = add_halves(__byte_perm(bytes, 0x64646464u, 0x4342), 0xE480E480u);
    return make_uint2(multiply_halves(low, scales), multiply_halves(high, scales));
}
DEVICE uint4 halves_of_codes(uint2 codes, u32 scales) {
    const uint2 low = halves_of_codes(codes.x, scales), high = halves_of_codes(codes.y, scales);
    return make_uint4(low.x, low.y, high.x, high.y);
}
