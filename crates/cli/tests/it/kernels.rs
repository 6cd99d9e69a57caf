//! `tessera kernels`: the choice of kernels as people and scripts see it.

use crate::support::Home;

fn rows(json: &str) -> Vec<serde_json::Value> {
    let value: serde_json::Value = serde_json::from_str(json).unwrap();
    value["kernels"].as_array().unwrap().clone()
}

#[test]
fn every_format_has_a_kernel_at_every_width() {
    let home = Home::new();
    let text = home.run(&["kernels", "--widths", "1,9"]).good();
    for format in ["Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "IQ2_XXS", "MXFP4", "MLX4_G64", "F16", "F32"] {
        let lines = text.lines().filter(|line| line.starts_with(&format!("{format} "))).count();
        assert_eq!(lines, 2, "{format} in {text}");
    }
}

#[test]
fn one_read_of_the_weights_serves_every_width_of_a_pass() {
    let home = Home::new();
    let args = ["kernels", "--format", "Q4_K", "--widths", "1,8,9,16", "--threads", "2", "--json"];
    let bytes: Vec<_> = rows(&home.run(&args).good()).iter().map(|r| r["bytes"]["weights"].as_u64().unwrap()).collect();
    assert_eq!(bytes.len(), 4);
    // Nothing is added by width, up to where threads divide tokens; by packing 3 % at most.
    assert_eq!(bytes[1..3], [bytes[0]; 2]);
    let in_file = 4096 * 4096 / 256 * 144;
    assert!((in_file..in_file * 103 / 100).contains(&bytes[0]), "{bytes:?}");
}

#[test]
fn switches_show() {
    let home = Home::new();
    let of = |switches: &str| {
        let args = ["kernels", "--format", "q8_0", "--widths", "256", "--experts", "4", "--used", "2", "--json"];
        let mut command = home.command(&args);
        let ran = crate::support::Ran::of(command.env("TESSERA_KERNELS", switches).output().unwrap());
        rows(&ran.good()).remove(0)
    };
    assert_eq!(of("moe_tile=32,isa=portable")["pass_tokens"], 32);
    assert_eq!(of("moe_tile=64,isa=portable")["pass_tokens"], 64);
    assert_eq!(of("tile=1,split=weights")["tile"]["tokens"], 1);
    assert_eq!(of("split=weights")["split"], "weights");
    let variant = of("isa=portable")["variant"].as_str().unwrap().to_owned();
    assert!(variant.starts_with("portable/"), "{variant}");
}

#[test]
fn a_model_s_matrices_are_counted_and_its_table_is_not() {
    let home = Home::new();
    let model =
        "synth:llama,layers=3,width=64,heads=2,kv_heads=1,head_dim=32,feed_forward=96,vocabulary=300,format=Q8_0";
    let rows = rows(&home.run(&["kernels", model, "--widths", "1", "--json"]).good());
    let of =
        |uses: &str| -> u64 { rows.iter().filter(|r| r["use"] == uses).map(|r| r["matrices"].as_u64().unwrap()).sum() };
    assert_eq!((of("dense"), of("head")), (3 * 7, 1), "{rows:?}");
    assert!(home.run(&["kernels", model, "--rows", "5"]).code == Some(2));
    let wrong = home.run(&["kernels", "--experts", "4", "--used", "8"]);
    assert!(wrong.code == Some(1) && wrong.err.contains("--used"), "{wrong:?}");
}

#[test]
fn the_way_of_attention_is_shown_and_forced() {
    let home = Home::new();
    let ways = |args: &[&str]| -> Vec<serde_json::Value> {
        let base = ["kernels", "--format", "q8_0", "--widths", "1,512", "--threads", "2", "--json"];
        let value = home.run(&[&base[..], args].concat()).json();
        value["attention"].as_array().unwrap().clone()
    };
    let all = ways(&[]);
    for head_dim in [64, 128, 256, 512] {
        let of = |width: u64| {
            let found = all.iter().find(|r| r["head_dim"] == head_dim && r["width"] == width && r["tokens"] == 4096);
            found.unwrap()["way"].as_str().unwrap().to_owned()
        };
        assert_eq!(of(1), "single/1x1");
        assert!(of(512).contains("fused/"), "{}", of(512));
    }
    let forced = ways(&["--kernels", "attention=single"]);
    assert!(forced.iter().all(|r| r["way"].as_str().unwrap().starts_with("single/")), "{forced:?}");
    let text = home.run(&["kernels", "--widths", "4"]).good();
    assert!(text.lines().any(|line| line.contains("8/2 x 512") && line.contains("  single/4x1")), "{text}");
}
