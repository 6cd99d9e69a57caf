//! The emulated machine finds what is wrong with a kernel, and computes what is right: kernels with one fault each, and with none.

use crate::stand_in::{NUMBERS, Way, run};

/// The body of a kernel with 64 threads, dynamic shared memory of 256 bytes and some of fixed size.
fn kernel(body: &str) -> String {
    format!(
        "KERNEL __launch_bounds__(64) test(float* x, u32 count, u32 launch) {{\n\
         __shared__ float fixed[64]; DYNAMIC_SHARED(float, dynamic); const u32 t = threadIdx.x, lane = t % 32;\n\
         (void)fixed; (void)dynamic; (void)lane; (void)launch;\n{body}\n}}"
    )
}

/// Bodies with a fault, and what is said of it. Line 4 is the body's first.
const FAULTS: [(&str, &[&str]); 24] = [
    ("x[t] = 1.0f;", &["fault.cu:4", "thread (40, 0, 0)", "writes 4 bytes at byte 160 of memory of 160 bytes"]),
    ("float v = x[(int)t - 1]; if (v > 9e9f) x[0] = v;", &["thread (0, 0, 0)", "reads 4 bytes at byte -4 of memory"]),
    ("dynamic[t + 1] = 0.0f;", &["thread (63, 0, 0)", "byte 256 of 256 of shared memory"]),
    ("((float*)0)[t] = 1.0f;", &["writes 4 bytes at a null pointer"]),
    ("uint2 v = __ldg((const uint2*)(x + 1)); fixed[t] = v.x;", &["not a multiple of the access's width"]),
    (
        "fixed[t] = 1.0f; if (t < count) x[t] = fixed[63 - t];",
        &["fault.cu:4", "thread (32, 0, 0)", "which thread 31 touched", "no barrier"],
    ),
    (
        "fixed[t] = 1.0f; __syncwarp(); if (t < 32) x[t] = fixed[t + 32];",
        &["thread (63, 0, 0)", "writes 4 bytes", "which thread 31 touched"],
    ),
    (
        "fixed[t] = 1.0f; __syncthreads(); float v = fixed[t ^ 1]; fixed[t] = v;",
        &["reads 4 bytes", "which thread 0 wrote"],
    ),
    (
        "if (t < 1) fixed[0] = 0.0f; __syncthreads(); add_in_shared((u32*)fixed, 1);\nif (t == 40) x[0] = fixed[0];",
        &["fault.cu:5", "thread (40, 0, 0)", "reads 4 bytes", "wrote"],
    ),
    ("x[0] = (float)t;", &["writes 4 bytes at byte 0 of memory", "which thread 0 touched in the same launch"]),
    ("if (t == 3) x[0] = (float)blockIdx.x;", &["thread (3, 0, 0) of block", "which thread 3 touched"]),
    ("if (t < 7) __syncthreads();", &["wait for ever: ", "57 left", "7 wait for the block at test/fault.cu:4"]),
    ("if (t != 5) __syncwarp();\nelse __syncthreads();", &["wait for ever", "1 wait for the block at test/fault.cu:5"]),
    ("if (lane < 16) __syncthreads(); else __syncwarp();", &["32 wait for the block", "32 wait for the warp"]),
    (
        "if (lane < 8) __shfl_xor_sync(0xffffffffu, t, 1);\nelse __syncwarp();",
        &["meets others that want something else"],
    ),
    ("__shfl_sync(0x1u, t, 0);", &["thread (1, 0, 0)", "is not in the mask that it waits with"]),
    (
        "int c[4] = {}; u32 a[4] = {}; if (lane > 0) multiply(c, a, make_uint2(0, 0), c);",
        &["wait for ever", "62 wait in a product of matrices"],
    ),
    ("if (t == 0) copy_16(dynamic, x + 1);", &["not a multiple of the access's width"]),
    ("if (t == 0) copy_4(x, x + 1);", &["names what is not shared memory"]),
    ("if (t == 0) copy_8(dynamic, x + 40);", &["reads 8 bytes at byte 160 of memory of 160 bytes"]),
    (
        "fixed[t] = 1.0f; __syncthreads(); copy_4(&dynamic[t ^ 1], x); dynamic[t] = 2.0f;",
        &["writes 4 bytes", "touched"],
    ),
    (
        "u32 at = shared_address(dynamic); if (t == 0) barrier_init(at, 2); __syncthreads();\n\
         if (t == 0) barrier_expect(at, 16); barrier_wait(at, 0);",
        &["wait for ever: 64 wait for a barrier in shared memory at test/fault.cu:5"],
    ),
    ("if (t < 40) wait_for_threads(1, 64);", &["24 left", "40 wait for named threads"]),
    (
        "if (t < 4) copy_16(dynamic + 4 * t, x + 4 * t); end_of_copies(); __syncthreads(); if (t < count) x[t] = dynamic[1];\n\
         wait_for_copies<0>();",
        &["fault.cu:4", "thread (1, 0, 0)", "reads 4 bytes at byte 4 of 256 of shared memory, which thread 0 wrote"],
    ),
];

/// Bodies without, and what becomes of number `i`.
type Sound = (&'static str, fn(usize) -> f32);
const SOUND: [Sound; 10] = [
    ("if (t < count && blockIdx.x == 0) x[t] = x[t] + 1.0f;", |i| i as f32 + 1.0),
    (
        "fixed[t] = (float)t; __syncthreads(); float v = fixed[63 - t]; __syncthreads(); fixed[t] = v; dynamic[t] = v;\n\
         if (t < count && blockIdx.x == 0) x[t] = fixed[t] + dynamic[t];",
        |i| 2.0 * (63 - i) as f32,
    ),
    (
        "float v = (float)lane; for (int w = 16; w > 0; w /= 2) v = v + __shfl_xor_sync(0xffffffffu, v, w);\n\
         u32 odd = __ballot_sync(0xffffffffu, lane & 1); if (t < count && blockIdx.x == 0) x[t] = v + (float)(odd >> 24);",
        |_| 496.0 + 170.0,
    ),
    // Threads that add to one place are no race.
    (
        "u32* sum = (u32*)fixed; if (t == 0) *sum = 5; __syncthreads(); add_in_shared(sum, t); __syncthreads();\n\
         if (t < count && blockIdx.x == 0) x[t] = (float)*sum;",
        |_| 5.0 + 63.0 * 32.0,
    ),
    // Shared memory is NaN before it is written, also for the next block.
    ("float v = fixed[t]; fixed[t] = 1.0f; if (t < count && blockIdx.x == 1) x[t] = v == v ? 0.0f : 5.0f;", |_| 5.0),
    // Row g of the first matrix is g + 1 everywhere, column n of the second n - 3.
    (
        "u32 low = (lane / 4 + 1) * 0x01010101u, high = (lane / 4 + 9) * 0x01010101u, b = (lane / 4 - 3 & 0xff) * 0x01010101u;\n\
         int c[4], start[4] = {100, 100, 100, 100}; u32 a[4] = {low, high, low, high}; multiply(c, a, make_uint2(b, b), start);\n\
         if (t < 4 && blockIdx.x == 0) for (int i = 0; i < 4; i++) x[(i / 2 * 4 + t) * 2 + i % 2] = (float)c[i];",
        |i| match i {
            // Row 0 and row 8.
            0..16 => 100.0 + 32.0 * (1.0 + 8.0 * (i / 8) as f32) * ((i % 8) as f32 - 3.0),
            _ => i as f32,
        },
    ),
    // Copies that are waited for.
    (
        "if (blockIdx.x) return; if (t < 4) copy_16(dynamic + 4 * t, x + 4 * t); end_of_copies(); wait_for_copies<0>(); __syncthreads();\n\
         if (t < count && blockIdx.x == 0) x[t] = dynamic[t % 16];",
        |i| (i % 16) as f32,
    ),
    // Of two groups the first has come.
    (
        "if (blockIdx.x) return; if (t == 0) { copy_4(dynamic, x + 7); end_of_copies(); copy_4(dynamic + 1, x + 8); end_of_copies(); }\n\
         wait_for_copies<1>(); __syncthreads(); float v = dynamic[0], w = dynamic[1]; __syncthreads();\n\
         if (t < count && blockIdx.x == 0) x[t] = w == w ? -1.0f : v;",
        |_| 7.0,
    ),
    // A bulk copy under a barrier, in two phases.
    (
        "if (blockIdx.x) return; u32 at = shared_address(dynamic) + 128, to = shared_address(dynamic); if (t == 0) barrier_init(at, 1);\n\
         __syncthreads(); float sum = 0.0f;\n\
         for (u32 i = 0; i < 2; i++) {\n\
           if (t == 0) { barrier_expect(at, 32); copy_bulk(to, x + 8 * i, 32, at); }\n\
           barrier_wait(at, i); sum = sum + dynamic[t % 8]; __syncthreads(); }\n\
         wait_for_threads(3, 64); if (t < count && blockIdx.x == 0) x[t] = sum;",
        |i| 8.0 + 2.0 * (i % 8) as f32,
    ),
    // Rounded once: in f32 first, the sum would stand between two f16, and go to the even one.
    (
        "u32 one = half_to_float(fma_halves(0x28012801u, 0x23FE23FEu, 0x3C013C01u) >> 16) == 1.0f + 1.0f / 1024;\n\
         u32 two = half_to_float(add_halves(0x7800u, 0x0001u)) == 32768.0f && pair_of_halves(1.0f, -2.0f) == 0xC0003C00u;\n\
         if (t < count && blockIdx.x == 0) x[t] = (float)(one + 2 * two);",
        |_| 3.0,
    ),
];

#[test]
fn faults_are_found_and_told() {
    let mut wrong = vec![];
    for (body, words) in FAULTS {
        let told = run(&kernel(body), if body.contains("blockIdx") { 2 } else { 1 }, Way::InTurn).expect_err(body);
        if told.contains('\n') || words.iter().any(|word| !told.contains(word)) {
            wrong.push(format!("{body}\n  {words:?}\n  {told}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn sound_kernels_give_what_they_should() {
    for (body, expected) in SOUND {
        let want: Vec<f32> = (0..NUMBERS).map(expected).collect();
        assert_eq!(run(&kernel(body), 3, Way::InTurn).as_deref(), Ok(&want[..]), "{body}");
    }
}

#[test]
fn what_the_machine_lacks_is_an_error_of_the_compiler() {
    let told = run(&kernel("x[t] = __nanosleep(3);"), 1, Way::InTurn).unwrap_err();
    assert!(
        told.contains("does not compile") && told.contains("test/fault.cu:4") && told.contains("__nanosleep"),
        "{told}"
    );
}

/// A kernel that starts early must not touch what earlier work may use, until it has waited for that; here by itself, or by one thread
/// and a barrier behind.
#[test]
fn early_starts_are_held_to_their_wait() {
    let wants = |body: &str| run(&kernel(body), 1, Way::EarlyBehind(1));
    let told = wants("if (t < count) x[t] = 2.0f;").unwrap_err();
    assert!(told.contains("writes 4 bytes") && told.contains("which earlier work may still use"), "{told}");
    assert!(wants("if (t == 0) after_earlier_work(); if (t == 33) x[t] = 2.0f;").is_err());
    let told = wants("if (count == 0) x[t] = 2.0f;").unwrap_err();
    assert!(told.contains("ends without a wait"), "{told}");
    let sound = [
        "after_earlier_work(); if (t < count) x[t] = 2.0f;",
        "if (t == 9) after_earlier_work(); __syncthreads(); if (t < count) x[t] = 2.0f;",
    ];
    for body in sound {
        assert_eq!(wants(body), Ok(vec![2.0; NUMBERS]), "{body}");
    }
    // What no kernel has written may be read at any time.
    let weights = "float v = t < count ? x[t] : 0.0f; after_earlier_work(); if (t < count) x[t] = v + 1.0f;";
    assert_eq!(run(&kernel(weights), 1, Way::Early), Ok((1..=NUMBERS).map(|i| i as f32).collect()));
    assert!(wants(weights).is_err());
}

/// Launch by launch, by its number: it may touch before its wait what all have left that its start stands behind.
#[test]
fn launches_run_beside_each_other() {
    let run = |first: &str, second: &str, third: &str| {
        let bodies = [first, second, third].into_iter().enumerate();
        let body: String = bodies.map(|(i, body)| format!("if (launch == {i}) {{ {body} }}\n")).collect();
        run(&kernel(&format!("const bool is_here = t < 8;\n{body}")), 1, Way::EarlyBehind(2))
    };
    let plain = "after_earlier_work(); if (is_here) x[t] = 5.0f;";
    let late = "after_earlier_work(); if (is_here) x[8 + t] = x[t] + 1.0f;";
    let early = "let_next_start(); after_earlier_work(); if (is_here) x[8 + t] = x[t] + 1.0f;";
    // It all is one allocation, so the second launch of these touches none of it.
    let (idle_late, idle_early) = ("after_earlier_work();", "let_next_start(); after_earlier_work();");
    let beside = "let_next_start(); read_anew(); if (is_here) x[16 + t] = x[t] + 2.0f; after_earlier_work();";
    let blind = "let_next_start(); if (is_here) x[16 + t] = x[t] + 2.0f; after_earlier_work();";
    let seen = run(plain, idle_late, beside).unwrap();
    assert_eq!((seen[3], seen[19]), (5.0, 7.0));
    for (second, third, why) in [
        (idle_early, beside, "the second lets the third start before its own wait"),
        (late, beside, "the second writes what the third reads"),
        (
            "after_earlier_work(); if (is_here && x[t] > 9.0f) x[t] = 1.0f;",
            beside,
            "the third writes what the second reads",
        ),
        (idle_late, blind, "the third may see what was read of the place before"),
    ] {
        let told = run(plain, second, third).expect_err(why);
        assert!(told.contains("which earlier work may still use"), "{why}: {told}");
    }
    let turned = run(plain, early, "after_earlier_work(); if (is_here) x[16 + t] = x[8 + t];").unwrap();
    assert_eq!(turned[16], 6.0);
}

/// What a launch writes out that lets nobody start before its end, the next may read ahead of its turn.
#[test]
fn what_is_written_out_is_read_early() {
    let told = |writes: &str| {
        let body = format!(
            "if (launch == 0) after_earlier_work();\nif (launch == 1) {{ {writes} }}\n\
             if (launch == 2) {{ read_anew(); float v = t < 8 ? x[t] : 0.0f; after_earlier_work(); if (t < 8) x[8 + t] = v; }}"
        );
        run(&kernel(&body), 1, Way::EarlyBehind(2))
    };
    let own = "if (t < 8) x[t] = 5.0f;";
    assert_eq!(told(&format!("wait_for_earlier_work(); {own} write_out();")).unwrap()[15], 5.0);
    for (writes, why) in [
        (format!("wait_for_earlier_work(); {own}"), "it may not be there when its blocks have ended"),
        (format!("after_earlier_work(); {own} write_out();"), "the next starts before"),
    ] {
        let words = told(&writes).expect_err(why);
        assert!(words.contains("which earlier work may still use"), "{why}: {words}");
    }
}

#[test]
fn a_graph_runs_what_was_captured() {
    let twice = run(&kernel("if (t < count) x[t] = x[t] + 3.0f;"), 1, Way::Graph);
    assert_eq!(twice, Ok((0..NUMBERS).map(|i| i as f32 + 6.0).collect()));
}
