// llama.cpp through node-llama-cpp, as a peer of benches/llm.rs.
//
// Usage: node llama.mjs FOLDER-OF-NODE-MODULES MODEL THREADS PROMPT-TOKENS ANSWER-TOKENS
// For every line on its input it reads a prompt and makes an answer, and prints {"prefill": s, "decode": s}: seconds of
// the prompt, and of the answer's tokens behind the first.
import {createInterface} from "node:readline";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [folder, modelPath, threads, promptTokens, answerTokens] = process.argv.slice(2);
const place = createRequire(`${folder}/package.json`).resolve("node-llama-cpp");
const {getLlama} = await import(pathToFileURL(place).href);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: Number(threads)});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize: 2048, batchSize: 512, threads: Number(threads)});
const sequence = context.getSequence();
console.log(JSON.stringify({ready: true}));

for await (const line of createInterface({input: process.stdin})) {
    const tokens = model.tokenize(line).slice(0, Number(promptTokens));
    await sequence.clearHistory();
    let begin = performance.now();
    await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, -1));
    const prefill = (performance.now() - begin) / 1000;
    const answer = [];
    for await (const token of sequence.evaluate(tokens.slice(-1), {temperature: 0, yieldEogToken: true})) {
        if (answer.length === 0) begin = performance.now();
        answer.push(token);
        if (answer.length > Number(answerTokens)) break;
    }
    const decode = (performance.now() - begin) / 1000;
    console.log(JSON.stringify({prefill, decode, tokens: tokens.length, answered: answer.length - 1}));
}
