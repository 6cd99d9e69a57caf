//! The ops, enqueued on a card.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tessera_formats::DType;
use tessera_ops::{
    Attention, Batch, Candidate, Compressor, Device, Error, Gate, KvLayout, LatentAttention, Linear, LinearStack,
    MatrixSource, RingPart, Role, Rope, Rotation, Rounding, Router, Selector, StreamGates, Table, math,
};

use crate::{
    attention::attend,
    cache::Cache,
    driver::{Counts, Gpu, Memory, Purpose, timeline::Turn},
    embedding,
    error::OpenError,
    kernels::Module,
    kv::KvPages,
    latent::{self, Frequencies, Selection},
    matmul::{
        Columns, Originals, Packed, PackedMatrix, project, project_fine, select,
        tile::FloatsTile,
        wide_tile::{Shape, Tile},
    },
    roles::{Numerics, Roles},
    routes::{Choices, Routes},
    rowwise, sample,
    steps::{Step, Steps},
    tensor::Tensor,
};

/// An NVIDIA card.
pub struct CudaDevice {
    gpu: Arc<Gpu>,
    steps: Steps,
    frequencies: Frequencies,
    /// What other matrices may be copies of.
    originals: Originals,
    /// Where rows of embeddings are decoded.
    embedded: Mutex<Vec<f32>>,
    /// The role that all rows count as, whatever theirs is.
    role: Option<Role>,
}

/// A vector of f32 on the card.
pub struct Vector {
    pub(crate) length: usize,
    pub(crate) memory: Memory,
}

impl CudaDevice {
    /// Opens card `ordinal`, whose compiled kernels are kept in `cache`.
    ///
    /// # Errors
    /// Without a driver, a compiler, such a card, or the instructions that kernels use.
    pub fn open(ordinal: usize, cache: Cache) -> Result<CudaDevice, OpenError> {
        CudaDevice::with(ordinal, cache, Purpose::Use)
    }

    /// As [`CudaDevice::open`]; memory is NaN before an op writes it, so that what it leaves out shows.
    ///
    /// # Errors
    /// As [`CudaDevice::open`].
    pub fn under_audit(ordinal: usize, cache: Cache) -> Result<CudaDevice, OpenError> {
        CudaDevice::with(ordinal, cache, Purpose::Audit)
    }

    /// As [`CudaDevice::open`], with kernels that note when their turn comes: see [`CudaDevice::turns`].
    ///
    /// # Errors
    /// As [`CudaDevice::open`].
    pub fn under_profile(ordinal: usize, cache: Cache) -> Result<CudaDevice, OpenError> {
        CudaDevice::with(ordinal, cache, Purpose::Profile)
    }

    fn with(ordinal: usize, cache: Cache, purpose: Purpose) -> Result<CudaDevice, OpenError> {
        let gpu = Gpu::open(ordinal, cache, purpose)?;
        let shared = [Module::Quantize, Module::Norm, Module::Rope, Module::Elementwise, Module::Route, Module::Best];
        let failed = |e: Error| OpenError::Driver { what: "load kernels", reason: e.to_string() };
        gpu.prepare(&shared).map_err(failed)?;
        let (steps, frequencies, originals, embedded) = Default::default();
        Ok(CudaDevice { gpu, steps, frequencies, originals, embedded, role: None })
    }

    /// The same, prompt rows in the arithmetic of codes where `numerics` says so.
    pub fn with_numerics(self, numerics: Numerics) -> CudaDevice {
        let role = (numerics == Numerics::Uniform).then_some(Role::Decode);
        CudaDevice { role, ..self }
    }

    /// The same, all rows being prompt rows.
    pub(crate) fn for_prompts(self) -> CudaDevice {
        CudaDevice { role: Some(Role::Prefill), ..self }
    }

    /// Which arithmetic rows of a prompt run in.
    pub fn numerics(&self) -> Numerics {
        if self.role == Some(Role::Decode) { Numerics::Uniform } else { Numerics::ByRole }
    }

    /// The kernel that multiplies a matrix of so many rows by so many decoded tokens, with the columns of its tile: `cuda/wide/64`.
    /// None for a format that holds no weights.
    pub fn kernel(&self, dtype: DType, rows: usize, tokens: usize) -> Option<String> {
        Some(match select(dtype)? {
            Packed::Codes(layout) => {
                let shape = Shape { rows, segments: 1, columns: tokens };
                let tile = self.gpu.tile(&Tile::all(layout, self.gpu.arch()), shape);
                let name = match tile {
                    Tile::Narrow(_) => "codes",
                    Tile::Wide(_) => "wide",
                    Tile::Many(_) => "many",
                };
                format!("cuda/{name}/{}", tile.columns())
            }
            Packed::Float(_) => format!("cuda/floats/{}", FloatsTile::of(rows, tokens).columns),
        })
    }

    /// Waits for all work that was enqueued.
    ///
    /// # Errors
    /// If any of it failed.
    pub fn wait(&self) -> Result<(), Error> {
        self.gpu.wait()
    }

    /// Kernels launched so far.
    pub fn counts(&self) -> Counts {
        self.gpu.counts()
    }

    /// Each launch that runs in `work`, in graphs and started early as in any step, in the order of their turns.
    /// `host` is what the card waits for between steps. Nothing, unless the device was opened under profile.
    ///
    /// # Errors
    /// If the card fails.
    pub fn turns(&self, work: impl FnOnce()) -> Result<Vec<Turn>, Error> {
        self.gpu.turns(work)
    }

    pub(crate) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    pub(crate) fn sent_rows(&self, rows: usize, values: &[f32]) -> Tensor {
        self.sent(rows, values.len() / rows.max(1), values, Roles::all(Role::Decode, rows))
    }

    pub(crate) fn step(&self, batch: &Batch) -> Arc<Step> {
        self.steps.get(&self.gpu, batch)
    }

    fn sent(&self, rows: usize, width: usize, values: &[f32], roles: Roles) -> Tensor {
        let y = Tensor::new(&self.gpu, rows, width, roles);
        self.gpu.send(&y.memory, values);
        y
    }

    /// The roles of a step's rows, as far as they pick an arithmetic.
    fn roles(&self, batch: &Batch) -> Roles {
        match self.role {
            None => Roles::of(batch.roles.iter().copied()),
            Some(role) => Roles::all(role, batch.len()),
        }
    }

    fn routed(
        &self,
        logits: &Tensor,
        router: &Router<CudaDevice>,
        bias: Option<&Vector>,
        chosen: Option<Choices>,
    ) -> Routes {
        let factors = router.factors.as_ref();
        let fits = |v: Option<&Vector>| v.is_none_or(|v| v.length == logits.width);
        assert!(fits(bias) && fits(factors), "each expert has its number");
        let (bias, factors) = (bias.map(|v| &v.memory), factors.map(|v| &v.memory));
        Routes::new(&self.gpu, logits, &router.routing, bias, factors, chosen)
    }

    /// Projections that share an input.
    fn project_all<const N: usize>(
        &self,
        x: &Tensor,
        matrices: [(&PackedMatrix, Option<&Vector>); N],
        columns: Columns<'_>,
    ) -> [Tensor; N] {
        project(&self.gpu, x, matrices.map(|(m, bias)| (m, bias.map(|b| m.bias(b)))), columns)
    }
}

impl PackedMatrix {
    /// The memory of a bias, which has a number for each row of each matrix.
    fn bias<'a>(&self, bias: &'a Vector) -> &'a Memory {
        assert_eq!(bias.length, self.rows_of_all(), "each row has its bias");
        &bias.memory
    }
}

impl Device for CudaDevice {
    type Matrix = PackedMatrix;
    type Stack = PackedMatrix;
    type Embedding = Table;
    type Vector = Vector;
    type Tensor = Tensor;
    type KvCache = KvPages;
    type Selection = Selection;
    type Routes = Routes;
    type Choices = Choices;

    fn name(&self) -> String {
        format!("CUDA ({}, {})", self.gpu.name(), self.gpu.arch())
    }

    fn roles_agree(&self) -> bool {
        self.role.is_some()
    }

    fn cache_form(&self) -> String {
        let numerics = match self.numerics() {
            Numerics::ByRole => "role",
            Numerics::Uniform => "uniform",
        };
        format!("{}, {numerics} numerics", self.name())
    }

    fn load_matrix(&self, source: &MatrixSource) -> Result<PackedMatrix, Error> {
        PackedMatrix::load(&self.gpu, &self.originals, source, 1)
    }

    fn load_stack(&self, source: &MatrixSource, count: usize) -> Result<PackedMatrix, Error> {
        PackedMatrix::load(&self.gpu, &self.originals, source, count)
    }

    fn load_embedding(&self, source: &MatrixSource) -> Result<Table, Error> {
        Table::load(source)
    }

    fn load_vector(&self, values: &[f32]) -> Result<Vector, Error> {
        let memory = self.gpu.reserve(size_of_val(values), "a vector")?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.gpu.upload(&memory, 0, &bytes)?;
        Ok(Vector { length: values.len(), memory })
    }

    fn kv_cache(&self, layout: &KvLayout, pages: usize, rings: usize) -> Result<KvPages, Error> {
        KvPages::new(&self.gpu, layout, pages, rings)
    }

    fn embed(&self, table: &Table, batch: &Batch, scale: f32) -> Tensor {
        // What is sent between launches keeps them from becoming one.
        if batch.page_tables.iter().any(|table| !table.is_empty()) {
            self.step(batch);
        }
        let mut memory = self.embedded.lock().unwrap_or_else(PoisonError::into_inner);
        let values = embedding::rows(table, &batch.tokens, scale, &mut memory);
        self.sent(batch.len(), table.width(), values, self.roles(batch))
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vector, epsilon: f32) -> Tensor {
        rowwise::rms_norm(&self.gpu, x, &weight.memory, weight.length, epsilon)
    }

    fn project<const N: usize>(&self, x: &Tensor, linears: [&Linear<Self>; N]) -> [Tensor; N] {
        self.project_all(x, linears.map(|l| (&l.matrix, l.bias.as_ref())), Columns::Dense)
    }

    fn project_fine(&self, x: &Tensor, linear: &Linear<Self>) -> Tensor {
        project_fine(&self.gpu, x, &linear.matrix, linear.bias.as_ref().map(|b| linear.matrix.bias(b)))
    }

    fn project_grouped(&self, x: &Tensor, linear: &LinearStack<Self>) -> Tensor {
        let [y] = self.project_all(x, [(&linear.matrices, linear.bias.as_ref())], Columns::Grouped);
        y
    }

    fn route(&self, logits: &Tensor, router: &Router<Self>) -> Routes {
        self.routed(logits, router, router.bias.as_ref(), None)
    }

    fn choices(&self, experts: Vec<u32>) -> Choices {
        Choices::new(&self.gpu, &experts)
    }

    fn route_chosen(&self, logits: &Tensor, router: &Router<Self>, chosen: Choices) -> Routes {
        self.routed(logits, router, None, Some(chosen))
    }

    fn project_routed<const N: usize>(
        &self,
        x: &Tensor,
        linears: [&LinearStack<Self>; N],
        routes: &Routes,
    ) -> [Tensor; N] {
        let columns = Columns::Routed { routes, places_each: routes.slots };
        self.project_all(x, linears.map(|l| (&l.matrices, l.bias.as_ref())), columns)
    }

    fn combine_routed(&self, x: &Tensor, linear: &LinearStack<Self>, routes: &Routes) -> Tensor {
        let columns = Columns::Routed { routes, places_each: 1 };
        let [parts] = self.project_all(x, [(&linear.matrices, linear.bias.as_ref())], columns);
        rowwise::combine(&self.gpu, &parts, routes)
    }

    fn rope_angles(&self, rope: &Rope, batch: &Batch) -> Tensor {
        let pairs = rope.frequencies.len();
        let mut values = vec![0.0; batch.len() * 2 * pairs];
        for (row, position) in values.chunks_exact_mut((2 * pairs).max(1)).zip(&batch.positions) {
            let (cosines, sines) = row.split_at_mut(pairs);
            for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(&rope.frequencies) {
                let (sin, cos) = math::sin_cos(f64::from(*position) * frequency);
                (*cosine, *sine) = (cos * rope.magnitude, sin * rope.magnitude);
            }
        }
        self.sent(batch.len(), 2 * pairs, &values, self.roles(batch))
    }

    fn rotate(&self, x: &mut Tensor, rotation: &Rotation, angles: &Tensor) {
        rowwise::rotate(&self.gpu, x, rotation, angles);
    }

    fn round(&self, x: &mut Tensor, head_dim: usize, rounding: Rounding) {
        rowwise::round(&self.gpu, x, head_dim, rounding);
    }

    fn store_kv(&self, cache: &mut KvPages, layer: usize, keys: &Tensor, values: &Tensor, batch: &Batch) {
        cache.store(&self.gpu, layer, keys, values, batch, &self.step(batch));
    }

    fn attention(
        &self,
        queries: &Tensor,
        cache: &KvPages,
        spec: &Attention,
        sinks: Option<&Vector>,
        batch: &Batch,
    ) -> Tensor {
        assert!(sinks.is_none_or(|s| s.length == spec.heads), "each query head has a sink");
        attend(&self.gpu, queries, cache, spec, sinks.map(|s| &s.memory), batch, &self.step(batch))
    }

    fn store_rows(&self, cache: &mut KvPages, entry: usize, rows: &Tensor, batch: &Batch) {
        cache.store_rows(&self.gpu, entry, rows, batch, &self.step(batch));
    }

    fn compress(&self, cache: &mut KvPages, compressor: &Compressor<Self>, batch: &Batch) {
        latent::compress(&self.gpu, &self.frequencies, cache, compressor, batch, &self.step(batch));
    }

    fn select(
        &self,
        queries: &Tensor,
        head_weights: &Tensor,
        cache: &KvPages,
        selector: &Selector,
        batch: &Batch,
    ) -> Selection {
        latent::select(&self.gpu, (queries, head_weights), cache, selector, batch, &self.step(batch), None)
    }

    fn attend_latent(
        &self,
        queries: &Tensor,
        cache: &KvPages,
        spec: &LatentAttention,
        selection: Option<&Selection>,
        sinks: &Vector,
        batch: &Batch,
    ) -> Tensor {
        latent::attend(&self.gpu, queries, cache, spec, (selection, sinks), batch, &self.step(batch))
    }

    fn gate(&self, x: &Tensor, up: &Tensor, gate: Gate) -> Tensor {
        assert_eq!((x.rows, x.width), (up.rows, up.width), "gate and up have one shape");
        rowwise::gate(&self.gpu, (x, 0), (up, 0), x.width, gate)
    }

    fn gate_halves(&self, x: &Tensor, gate: Gate) -> Tensor {
        assert!(x.width.is_multiple_of(2), "a row is two halves");
        rowwise::gate(&self.gpu, (x, 0), (x, x.width / 2), x.width / 2, gate)
    }

    fn copies(&self, x: &Tensor, count: usize) -> Tensor {
        rowwise::copies(&self.gpu, x, count)
    }

    fn stream_gates(&self, mix: &Tensor, scale: &Vector, base: &Vector, spec: &StreamGates) -> Tensor {
        spec.check();
        let found = (mix.width, base.length, scale.length);
        assert_eq!(found, (spec.width(), spec.width(), spec.parts()), "numbers for all gates");
        rowwise::stream_gates(&self.gpu, mix, &scale.memory, &base.memory, spec)
    }

    fn collapse_streams(&self, streams: &Tensor, gates: &Tensor, count: usize) -> Tensor {
        rowwise::collapse_streams(&self.gpu, streams, gates, count)
    }

    fn spread_streams(&self, streams: &mut Tensor, y: &Tensor, gates: &Tensor, count: usize) {
        rowwise::spread_streams(&self.gpu, streams, y, gates, count);
    }

    fn columns(&self, x: &Tensor, columns: Range<usize>) -> Tensor {
        rowwise::columns(&self.gpu, x, columns)
    }

    fn scale(&self, x: &mut Tensor, factor: f32) {
        rowwise::scale(&self.gpu, x, factor);
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) {
        rowwise::add(&self.gpu, x, y);
    }

    fn soft_cap(&self, x: &mut Tensor, cap: f32) {
        rowwise::soft_cap(&self.gpu, x, cap);
    }

    fn logit_rows(&self, x: &Tensor, batch: &Batch) -> Tensor {
        assert!(batch.logit_rows.iter().all(|r| (*r as usize) < x.rows), "wanted rows are rows of the step");
        let (wanted, roles) = (&self.step(batch).logit_rows, x.roles.picked(&batch.logit_rows));
        rowwise::gather_rows(&self.gpu, x, wanted, roles, batch.logit_rows.len())
    }

    fn read(&self, x: &Tensor, out: &mut Vec<f32>) -> Result<(), Error> {
        out.resize(x.count(), 0.0);
        self.gpu.download(&x.memory, 0, out)
    }

    fn ranks(&self) -> bool {
        true
    }

    fn best(&self, logits: &Tensor, rows: usize, count: usize, out: &mut Vec<Candidate>) -> Result<(), Error> {
        assert_eq!(rows, logits.rows, "rows are the tensor's");
        sample::best(&self.gpu, logits, count, out)
    }

    fn mark(&self) -> bool {
        self.gpu.mark();
        true
    }

    fn stages(&self) -> Result<Vec<Duration>, Error> {
        self.gpu.stages()
    }

    fn read_page(&self, cache: &KvPages, page: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        cache.read_page(&self.gpu, page, out)
    }

    fn write_page(&self, cache: &mut KvPages, page: u32, bytes: &[u8]) -> Result<(), Error> {
        cache.write_page(&self.gpu, page, bytes)
    }

    fn read_ring(&self, cache: &KvPages, ring: u32, part: RingPart, out: &mut Vec<u8>) -> Result<(), Error> {
        cache.read_ring(&self.gpu, ring, part, out)
    }

    fn write_ring(&self, cache: &mut KvPages, ring: u32, part: RingPart, bytes: &[u8]) -> Result<(), Error> {
        cache.write_ring(&self.gpu, ring, part, bytes)
    }

    fn read_selection(&self, selection: &Selection, rows: &mut Vec<Vec<u32>>) -> Result<(), Error> {
        selection.read(&self.gpu, rows)
    }

    fn read_routes(&self, routes: &Routes, experts: &mut Vec<u32>, weights: &mut Vec<f32>) -> Result<(), Error> {
        let count = routes.tokens * routes.slots;
        experts.resize(count, 0);
        weights.resize(count, 0.0);
        self.gpu.download(&routes.chosen, 0, experts)?;
        self.gpu.download(&routes.weights, 0, weights)
    }
}
