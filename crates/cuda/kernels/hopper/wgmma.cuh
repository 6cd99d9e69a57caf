// Products of a warpgroup (sm_90a): 64 rows by 16 numbers of depth by N columns from shared memory, in f32. Rows are in registers or shared
// memory; what lies turned there is read so.
//
// `sums[4 j + 2 h + e]` of a lane is row lane / 4 + 8 h of its warp's sixteen, token 8 j + 2 (lane % 4) + e.

// Sums as operands: their places in the text, and what stands there. Each width begins with those of the one below.
#define PLACES_4 "%0,%1,%2,%3"
#define PLACES_8 PLACES_4 ",%4,%5,%6,%7"
#define PLACES_12 PLACES_8 ",%8,%9,%10,%11"
#define PLACES_16 PLACES_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define PLACES_24 PLACES_16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define PLACES_28 PLACES_24 ",%24,%25,%26,%27"
#define PLACES_32 PLACES_28 ",%28,%29,%30,%31"
#define PLACES_64 PLACES_32 \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56" \
    ",%57,%58,%59,%60,%61,%62,%63"
#define PLACES_96 PLACES_64 \
    ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88" \
    ",%89,%90,%91,%92,%93,%94,%95"
#define PLACES_104 PLACES_96 ",%96,%97,%98,%99,%100,%101,%102,%103"
#define PLACES_112 PLACES_104 ",%104,%105,%106,%107,%108,%109,%110,%111"
#define PLACES_128 PLACES_112 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define FOUR_SUMS(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define SIXTEEN_SUMS(i) FOUR_SUMS(i), FOUR_SUMS(i + 4), FOUR_SUMS(i + 8), FOUR_SUMS(i + 12)
#define SUMS_4 FOUR_SUMS(0)
#define SUMS_8 SUMS_4, FOUR_SUMS(4)
#define SUMS_12 SUMS_8, FOUR_SUMS(8)
#define SUMS_16 SIXTEEN_SUMS(0)
#define SUMS_24 SUMS_16, FOUR_SUMS(16), FOUR_SUMS(20)
#define SUMS_28 SUMS_24, FOUR_SUMS(24)
#define SUMS_32 SUMS_28, FOUR_SUMS(28)
#define SUMS_64 SUMS_32, SIXTEEN_SUMS(32), SIXTEEN_SUMS(48)
#define SUMS_96 SUMS_64, SIXTEEN_SUMS(64), SIXTEEN_SUMS(80)
#define SUMS_104 SUMS_96, FOUR_SUMS(96), FOUR_SUMS(100)
#define SUMS_112 SUMS_104, FOUR_SUMS(104), FOUR_SUMS(108)
#define SUMS_128 SUMS_112, SIXTEEN_SUMS(112)

template <int N> DEVICE_MEMBER void multiply_add(float* sums, const u32 (&a)[4], u64 b);
// The same, whatever the sums were.
template <int N> DEVICE_MEMBER void multiply_first(float* sums, const u32 (&a)[4], u64 b);

// N tokens have COUNT = N / 2 sums a lane; the operands behind them are numbered on.
#define PRODUCT_OF_REGISTERS(NAME, N, COUNT, SUMS, A0, A1, A2, A3, B, IS_ADDED) \
    template <> DEVICE_MEMBER void NAME<N>(float* sums, const u32 (&a)[4], u64 b) { \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" PLACES_##COUNT "}, " \
                     "{%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", " #IS_ADDED ", 1, 1, 0;" \
                     : SUMS \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
    }
#define MULTIPLY_ADD(N, COUNT, A0, A1, A2, A3, B) \
    PRODUCT_OF_REGISTERS(multiply_add, N, COUNT, SUMS_##COUNT, A0, A1, A2, A3, B, 1)
MULTIPLY_ADD(32, 16, 16, 17, 18, 19, 20)
MULTIPLY_ADD(48, 24, 24, 25, 26, 27, 28)
MULTIPLY_ADD(56, 28, 28, 29, 30, 31, 32)
MULTIPLY_ADD(64, 32, 32, 33, 34, 35, 36)
MULTIPLY_ADD(128, 64, 64, 65, 66, 67, 68)
MULTIPLY_ADD(192, 96, 96, 97, 98, 99, 100)
MULTIPLY_ADD(208, 104, 104, 105, 106, 107, 108)
MULTIPLY_ADD(224, 112, 112, 113, 114, 115, 116)
MULTIPLY_ADD(256, 128, 128, 129, 130, 131, 132)
#define FOUR_NEW(i) "=f"(sums[i]), "=f"(sums[i + 1]), "=f"(sums[i + 2]), "=f"(sums[i + 3])
#define SIXTEEN_NEW(i) FOUR_NEW(i), FOUR_NEW(i + 4), FOUR_NEW(i + 8), FOUR_NEW(i + 12)
#define NEW_16 SIXTEEN_NEW(0)
#define NEW_32 NEW_16, SIXTEEN_NEW(16)
#define MULTIPLY_FIRST(N, COUNT, A0, A1, A2, A3, B) \
    PRODUCT_OF_REGISTERS(multiply_first, N, COUNT, NEW_##COUNT, A0, A1, A2, A3, B, 0)
MULTIPLY_FIRST(32, 16, 16, 17, 18, 19, 20)
MULTIPLY_FIRST(64, 32, 32, 33, 34, 35, 36)

// Both operands in shared memory, as `operand_of` names them.
template <int N> DEVICE_MEMBER void multiply_shared(float* sums, u64 a, u64 b);
// The first turned.
template <int N> DEVICE_MEMBER void multiply_turned(float* sums, u64 a, u64 b);
// The first in registers, the second turned.
template <int N> DEVICE_MEMBER void multiply_by_turned(float* sums, const u32 (&a)[4], u64 b);

#define SHARED_PRODUCT(NAME, N, COUNT, A, B, IS_TURNED) \
    template <> DEVICE_MEMBER void NAME<N>(float* sums, u64 a, u64 b) { \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" PLACES_##COUNT "}, %" #A ", %" #B \
                     ", 1, 1, 1, " #IS_TURNED ", 0;" \
                     : SUMS_##COUNT : "l"(a), "l"(b)); \
    }
#define SHARED_PRODUCTS(N, COUNT, A, B) \
    SHARED_PRODUCT(multiply_shared, N, COUNT, A, B, 0) \
    SHARED_PRODUCT(multiply_turned, N, COUNT, A, B, 1)
SHARED_PRODUCTS(8, 4, 4, 5)
SHARED_PRODUCTS(16, 8, 8, 9)
SHARED_PRODUCTS(24, 12, 12, 13)
SHARED_PRODUCTS(32, 16, 16, 17)
SHARED_PRODUCTS(64, 32, 32, 33)
SHARED_PRODUCTS(128, 64, 64, 65)

#define TURNED_PRODUCT(N, COUNT, A0, A1, A2, A3, B) \
    template <> DEVICE_MEMBER void multiply_by_turned<N>(float* sums, const u32 (&a)[4], u64 b) { \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" PLACES_##COUNT "}, " \
                     "{%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", 1, 1, 1, 1;" \
                     : SUMS_##COUNT : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
    }
TURNED_PRODUCT(64, 32, 32, 33, 34, 35, 36)
TURNED_PRODUCT(128, 64, 64, 65, 66, 67, 68)
TURNED_PRODUCT(192, 96, 96, 97, 98, 99, 100)
TURNED_PRODUCT(256, 128, 128, 129, 130, 131, 132)
