//! rten as a peer of `benches/encode.rs`; the same protocol as `ort.py`: MODEL.onnx INPUT.json, then a line
//! `bulk`, `query` or `vectors` on standard input for each run. Threads: RTEN_NUM_THREADS.

use rten::{Model, NodeId, ValueOrView};
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;
use std::error::Error;
use std::io::BufRead;
use std::time::Instant;

struct Call {
    ids: NdTensor<i32, 2>,
    mask: NdTensor<i32, 2>,
}

fn call(sequences: &[Vec<i32>]) -> Call {
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let shape = [sequences.len(), longest];
    let (mut ids, mut mask) = (NdTensor::zeros(shape), NdTensor::zeros(shape));
    for (row, sequence) in sequences.iter().enumerate() {
        for (column, id) in sequence.iter().enumerate() {
            ids[[row, column]] = *id;
            mask[[row, column]] = 1;
        }
    }
    Call { ids, mask }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, input] = arguments.as_slice() else {
        return Err("usage: rten-peer MODEL.onnx INPUT.json".into());
    };
    let model = Model::load_file(path)?;
    let work: serde_json::Value = serde_json::from_slice(&std::fs::read(input)?)?;
    let bulk: Vec<Vec<i32>> = serde_json::from_value(work["bulk"].clone())?;
    let query: Vec<i32> = serde_json::from_value(work["query"].clone())?;
    let size = work["batch"].as_u64().unwrap_or(32) as usize;
    let bulk: Vec<Call> = bulk.chunks(size).map(call).collect();
    let query = [call(&[query])];
    let (ids, mask): (NodeId, NodeId) = (model.node_id("input_ids")?, model.node_id("attention_mask")?);
    let output = model.node_id("embedding")?;
    let run = |calls: &[Call]| -> Result<Vec<Vec<f32>>, Box<dyn Error>> {
        let mut vectors = Vec::new();
        for call in calls {
            let inputs: Vec<(NodeId, ValueOrView)> = vec![(ids, call.ids.view().into()), (mask, call.mask.view().into())];
            let [embedding] = model.run_n(inputs, [output], None)?;
            let embedding: NdTensor<f32, 2> = embedding.try_into()?;
            vectors.extend((0..embedding.size(0)).map(|row| embedding.slice(row).to_vec()));
        }
        Ok(vectors)
    };
    println!("0.27.0");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line.trim() == "vectors" {
            println!("{}", serde_json::to_string(&run(&bulk)?)?);
            continue;
        }
        let begin = Instant::now();
        run(if line.trim() == "bulk" { &bulk } else { &query })?;
        println!("{}", begin.elapsed().as_secs_f64());
    }
    Ok(())
}
