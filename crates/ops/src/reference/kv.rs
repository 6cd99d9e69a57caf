//! Keys and values in pages, as plain as can be: [layer][page][token in page][head][feature].

use super::Tensor;
use crate::{Batch, Error, KvFormat, KvLayout, PAGE_TOKENS};

/// Keys and values of one layer.
#[derive(Clone, Debug)]
struct Layer<T> {
    heads: usize,
    head_dim: usize,
    keys: Vec<T>,
    values: Vec<T>,
}

/// The cache; numbers are kept as `T`, rounded as the format says.
#[derive(Clone, Debug)]
pub struct KvPages<T> {
    format: KvFormat,
    layers: Vec<Layer<T>>,
}

impl<T: Copy> KvPages<T> {
    /// `pages` pages, each number `fill`.
    pub(super) fn new(device: &str, layout: &KvLayout, pages: usize, fill: T) -> Result<KvPages<T>, Error> {
        let bytes = layout.page_bytes().saturating_mul(pages);
        let filled = |numbers: Option<usize>| {
            let mut v = Vec::new();
            let full = Error::OutOfMemory { device: device.to_owned(), what: "keys and values".to_owned(), bytes };
            match numbers {
                Some(n) if v.try_reserve_exact(n).is_ok() => v.resize(n, fill),
                _ => return Err(full),
            }
            Ok(v)
        };
        let mut layers = Vec::new();
        for layer in &layout.layers {
            let numbers = (layer.heads * layer.head_dim * PAGE_TOKENS).checked_mul(pages);
            let (keys, values) = (filled(numbers)?, filled(numbers)?);
            layers.push(Layer { heads: layer.heads, head_dim: layer.head_dim, keys, values });
        }
        Ok(KvPages { format: layout.format, layers })
    }

    /// (heads, head_dim) of a layer.
    pub(super) fn shape(&self, layer: usize) -> (usize, usize) {
        (self.layers[layer].heads, self.layers[layer].head_dim)
    }

    /// The key and the value (head_dim each) of slot `slot` of page `page`.
    pub(super) fn get(&self, layer: usize, page: u32, slot: usize, head: usize) -> (&[T], &[T]) {
        let l = &self.layers[layer];
        let at = ((page as usize * PAGE_TOKENS + slot) * l.heads + head) * l.head_dim;
        (&l.keys[at..][..l.head_dim], &l.values[at..][..l.head_dim])
    }

    /// Writes keys and values (heads · head_dim each) of one token.
    pub(super) fn put(&mut self, layer: usize, page: u32, slot: usize, key: &[T], value: &[T]) {
        let l = &mut self.layers[layer];
        let width = l.heads * l.head_dim;
        let at = (page as usize * PAGE_TOKENS + slot) * width;
        l.keys[at..][..width].copy_from_slice(key);
        l.values[at..][..width].copy_from_slice(value);
    }
}

pub(super) fn store(cache: &mut KvPages<f32>, layer: usize, keys: &Tensor, values: &Tensor, batch: &Batch) {
    let (heads, head_dim) = cache.shape(layer);
    assert_eq!((keys.width, values.width), (heads * head_dim, heads * head_dim), "keys and values fill all heads");
    let round = |row: &[f32]| -> Vec<f32> {
        row.iter()
            .map(|v| match cache.format {
                KvFormat::F32 => *v,
                KvFormat::F16 => half::f16::from_f32(*v).to_f32(),
            })
            .collect()
    };
    let rows: Vec<_> = (0..batch.len()).map(|r| (round(keys.row(r)), round(values.row(r)))).collect();
    for (row, (key, value)) in rows.iter().enumerate() {
        let (page, slot) = batch.slot(row, batch.positions[row] as usize);
        cache.put(layer, page, slot, key, value);
    }
}
