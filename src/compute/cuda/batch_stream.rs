//! One of the streams that batches run on: its memory, the packed batch in it, and the graphs of short batches.

use super::super::ComputeError;
use super::engine::Engine;
use super::gpu::{Graph, Memory, Pinned, Stream};
use super::matmul::SCRATCH;
use super::request::Request;
use half::bf16;
use std::collections::HashMap;
use std::sync::Arc;

/// Batches up to that many tokens are replayed from a graph: their kernels are shorter than their launches.
const GRAPH_TOKENS: usize = 1024;
/// Most graphs that a stream keeps.
const GRAPHS: usize = 32;
/// Sequences from that length on are cut into tiles of 128 query rows instead of 64.
const LONG: usize = 256;

/// A model's forward pass over a packed batch, put on a stream.
pub trait Network: Send + Sync {
    /// bf16 elements a token of each buffer that the pass needs; the first one holds the token vectors at the end.
    fn widths(&self) -> &[usize];
    /// f32 elements a token that it needs for a residual stream.
    fn residual_width(&self) -> usize;
    /// Elements of a token vector.
    fn hidden(&self) -> usize;
    /// Rows of the word table, and the longest sequence.
    fn limits(&self) -> (usize, usize);
    /// The number that the first token's position has.
    fn first_place(&self) -> u32;
    /// Bytes of device memory of the weights.
    fn memory(&self) -> usize;
    /// Starts the pass.
    fn start(&self, engine: &Engine, stream: &Stream, buffers: &Buffers, shape: Shape) -> Result<(), ComputeError>;
}

/// How much of the buffers a batch uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    pub tokens: usize,
    pub tiles: usize,
    /// Warps of an attention block.
    pub warps: usize,
}

/// Device memory of one batch.
pub struct Buffers {
    tokens: usize,
    vectors: usize,
    pub ids: Memory<u32>,
    pub places: Memory<u32>,
    pub tiles: Memory<[u32; 4]>,
    pub spans: Memory<[u32; 4]>,
    pub states: Vec<Memory<bf16>>,
    pub residual: Memory<f32>,
    pub scratch: Memory<u8>,
    out: Memory<f32>,
}

/// Pinned memory of one batch.
struct Host {
    ids: Pinned<u32>,
    places: Pinned<u32>,
    tiles: Pinned<[u32; 4]>,
    spans: Pinned<[u32; 4]>,
    out: Pinned<f32>,
}

/// A stream with its memory. At most one batch at a time.
pub struct BatchStream {
    engine: Arc<Engine>,
    stream: Stream,
    memory: Option<(Buffers, Host)>,
    /// By shape; `None` after a shape's first run, which is not recorded.
    graphs: HashMap<Shape, Option<Graph>>,
    /// Vectors that the batch under way gives.
    vectors: usize,
}

impl BatchStream {
    pub fn new(engine: &Arc<Engine>) -> Result<BatchStream, ComputeError> {
        Ok(BatchStream {
            engine: engine.clone(),
            stream: Stream::new(&engine.gpu)?,
            memory: None,
            graphs: HashMap::new(),
            vectors: 0,
        })
    }

    /// Gives the memory back; waits for the batch under way.
    pub fn release(&mut self) {
        // A failure shows at the next use; the memory is of no use then either.
        let _ = self.stream.wait();
        self.graphs.clear();
        self.memory = None;
    }

    /// Memory for so many tokens and vectors. Tiles: never more than tokens.
    fn reserve(&mut self, network: &dyn Network, tokens: usize, vectors: usize) -> Result<(), ComputeError> {
        if let Some((buffers, _)) = &self.memory
            && buffers.tokens >= tokens
            && buffers.vectors >= vectors
        {
            return Ok(());
        }
        self.release();
        let gpu = &self.engine.gpu;
        let states = network.widths().iter().map(|width| Memory::new(gpu, tokens * width));
        let buffers = Buffers {
            tokens,
            vectors,
            ids: Memory::new(gpu, tokens)?,
            places: Memory::new(gpu, tokens)?,
            tiles: Memory::new(gpu, tokens)?,
            spans: Memory::new(gpu, vectors)?,
            states: states.collect::<Result<_, _>>()?,
            residual: Memory::new(gpu, tokens * network.residual_width())?,
            scratch: Memory::new(gpu, SCRATCH)?,
            out: Memory::new(gpu, vectors * network.hidden())?,
        };
        let host = Host {
            ids: Pinned::new(gpu, tokens)?,
            places: Pinned::new(gpu, tokens)?,
            tiles: Pinned::new(gpu, tokens)?,
            spans: Pinned::new(gpu, vectors)?,
            out: Pinned::new(gpu, vectors * network.hidden())?,
        };
        self.memory = Some((buffers, host));
        Ok(())
    }

    /// Packs a batch and starts it. The stream has none under way.
    pub fn start(&mut self, network: &dyn Network, batch: &[Request]) -> Result<(), ComputeError> {
        let tokens: usize = batch.iter().map(|request| request.ids.len()).sum();
        let vectors: usize = batch.iter().map(|request| request.ranges.len()).sum();
        if tokens == 0 || vectors == 0 {
            return Err(ComputeError::Shape("an empty batch".to_string()));
        }
        let short = tokens <= GRAPH_TOKENS;
        let shape = shape_of(batch, tokens, short);
        let room = if short {
            GRAPH_TOKENS
        } else {
            shape.tokens.next_multiple_of(1024)
        };
        self.reserve(network, room, vectors.next_power_of_two().max(64))?;
        let Some((buffers, host)) = &mut self.memory else {
            return Err(ComputeError::Shape("a stream without memory".to_string()));
        };
        pack(host, batch, shape, network.first_place());
        let stream = &self.stream;
        buffers.ids.write(stream, &host.ids.as_slice()[..shape.tokens])?;
        buffers.places.write(stream, &host.places.as_slice()[..shape.tokens])?;
        buffers.tiles.write(stream, &host.tiles.as_slice()[..shape.tiles])?;
        buffers.spans.write(stream, &host.spans.as_slice()[..vectors])?;
        let engine = &*self.engine;
        let run = || network.start(engine, stream, buffers, shape);
        match self.graphs.get(&shape) {
            Some(Some(graph)) => graph.launch(stream)?,
            // The second time: a shape that comes back is worth a graph, and the first run has loaded every kernel.
            Some(None) => {
                let graph = stream.capture(run)?;
                graph.launch(stream)?;
                self.graphs.insert(shape, Some(graph));
            }
            None => {
                run()?;
                if short && self.graphs.len() < GRAPHS {
                    self.graphs.insert(shape, None);
                }
            }
        }
        let states = buffers
            .states
            .first()
            .ok_or_else(|| ComputeError::Shape("no token vectors".to_string()))?;
        let launch = engine.on(stream);
        launch.pool_spans(states, &buffers.spans, vectors, &buffers.out, network.hidden())?;
        buffers
            .out
            .read_into(stream, &mut host.out, vectors * network.hidden())?;
        self.vectors = vectors;
        Ok(())
    }

    /// Waits for the batch under way and takes its vectors, one behind the other.
    pub fn finish(&mut self, network: &dyn Network) -> Result<Vec<Vec<f32>>, ComputeError> {
        self.stream.wait()?;
        let Some((_, host)) = &self.memory else {
            return Ok(Vec::new());
        };
        let rows = host
            .out
            .as_slice()
            .chunks_exact(network.hidden().max(1))
            .take(self.vectors);
        Ok(rows.map(<[f32]>::to_vec).collect())
    }
}

/// The shape of a batch of so many tokens. A short one has one of few shapes, so that few graphs are made: what is added is
/// computed and never read.
fn shape_of(batch: &[Request], tokens: usize, short: bool) -> Shape {
    let longest = batch.iter().map(|request| request.ids.len()).max().unwrap_or(0);
    let warps = if longest >= LONG { 8 } else { 4 };
    let tiles: usize = batch.iter().map(|request| request.ids.len().div_ceil(warps * 16)).sum();
    match short {
        true => Shape {
            tokens: tokens.next_power_of_two().max(16),
            tiles: tiles.next_power_of_two(),
            warps,
        },
        false => Shape { tokens, tiles, warps },
    }
}

/// Fills the pinned memory: the batch, and behind it tokens and tiles that mean nothing.
fn pack(host: &mut Host, batch: &[Request], shape: Shape, first_place: u32) {
    let rows = shape.warps * 16;
    let (ids, places) = (host.ids.as_mut_slice(), host.places.as_mut_slice());
    let (tiles, spans) = (host.tiles.as_mut_slice(), host.spans.as_mut_slice());
    let (mut token, mut tile, mut span) = (0, 0, 0);
    for request in batch {
        let length = request.ids.len();
        for (place, id) in request.ids.iter().enumerate() {
            ids[token + place] = *id;
            places[token + place] = first_place + place as u32;
        }
        for row in (0..length).step_by(rows) {
            tiles[tile] = [token as u32, length as u32, row as u32, 0];
            tile += 1;
        }
        for range in &request.ranges {
            let (start, end) = (token as u32 + range.start, token as u32 + range.end);
            spans[span] = [start, end, u32::from(range.largest), u32::from(range.unit)];
            span += 1;
        }
        token += length;
    }
    ids[token..shape.tokens].fill(0);
    places[token..shape.tokens].fill(first_place);
    tiles[tile..shape.tiles].fill([0; 4]);
}
