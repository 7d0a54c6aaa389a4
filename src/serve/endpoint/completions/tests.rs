//! The client of endpoints against small servers on loopback.

use super::*;
use crate::serve::llm::wire::Turn;
use std::io::Write;
use std::net::TcpListener;

/// Answers one connection after the other with these bytes; gives the requests.
fn serve(answers: Vec<String>) -> (Endpoint, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let server = std::thread::spawn(move || {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut reader = BufReader::new(stream.try_clone().expect("a copy"));
            let (mut request, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).expect("a line");
                if let Some(value) = line.strip_prefix("Content-Length: ") {
                    length = value.trim().parse().expect("a number");
                }
                request.push_str(&line);
                if line == "\r\n" {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("a body");
            request.push_str(&String::from_utf8(body).expect("text"));
            requests.push(request);
            stream.write_all(answer.as_bytes()).expect("written");
        }
        requests
    });
    let endpoint = Endpoint {
        address: Address::parse(&format!("http://127.0.0.1:{port}/v1/")).expect("an address"),
        key: Some("secret".to_owned()),
        model: "m".to_owned(),
        timeout: Duration::from_secs(10),
        retries: 2,
    };
    (endpoint, server)
}

const EVENTS: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"Grüß\"}}]}\n\n\
                      : a comment\n\ndata: {\"choices\":[{\"delta\":{\"content\":\" dich\"}}]}\n\n\
                      data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";

fn chunked(text: &str, size: usize) -> String {
    let mut answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    let mut rest = text;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.ceil_char_boundary(size));
        answer.push_str(&format!("{:x}\r\n{now}\r\n", now.len()));
        rest = later;
    }
    answer + "0\r\n\r\n"
}

fn form(chat: bool, part: Part) -> PromptForm {
    PromptForm {
        chat,
        turns: vec![Turn {
            role: "user".to_owned(),
            parts: vec![part],
        }],
        ..PromptForm::default()
    }
}

fn sampling() -> Sampling {
    Sampling {
        max_tokens: 9,
        temperature: 0.5,
        top_k: 3,
        top_p: 1.0,
        seed: 4,
        stop: vec!["END".to_owned()],
    }
}

fn ask(endpoint: &Endpoint, chat: bool) -> Result<(String, Figures), EndpointError> {
    let stream = Stream::open(endpoint, &form(chat, Part::Text("Hallo".to_owned())), &sampling())?;
    let mut text = String::new();
    loop {
        match stream.next_within(Duration::from_secs(20))? {
            Some(Piece::Text(piece)) => text.push_str(&piece),
            Some(Piece::Done(figures)) => return Ok((text, figures)),
            None => panic!("nothing comes"),
        }
    }
}

#[test]
fn an_answer_comes_through_every_kind_of_body() {
    let plain = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{EVENTS}", EVENTS.len());
    let closed = format!("HTTP/1.1 200 OK\r\n\r\n{EVENTS}");
    for answer in [plain, closed, chunked(EVENTS, 1), chunked(EVENTS, 100)] {
        let (endpoint, server) = serve(vec![answer]);
        let (text, figures) = ask(&endpoint, true).expect("an answer");
        assert_eq!(text, "Grüß dich");
        assert_eq!((figures.prompt_tokens, figures.tokens), (7, 2));
        let request = server.join().expect("served").remove(0);
        assert!(
            request.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(request.contains("Authorization: Bearer secret\r\n"));
        let body: Value = serde_json::from_str(request.split("\r\n\r\n").nth(1).expect("a body")).expect("JSON");
        assert_eq!(body["messages"], json!([{"role": "user", "content": "Hallo"}]));
        assert_eq!(
            (&body["max_tokens"], &body["top_k"], &body["seed"]),
            (&json!(9), &json!(3), &json!(4))
        );
        assert_eq!(body["stop"], json!(["END"]));
    }
}

#[test]
fn prompts_without_a_template_go_to_completions() {
    let events = "data: {\"choices\":[{\"text\":\"yes\"}]}\n\ndata: [DONE]\n\n";
    let (endpoint, server) = serve(vec![chunked(events, 50)]);
    assert_eq!(ask(&endpoint, false).expect("an answer").0, "yes");
    let request = server.join().expect("served").remove(0);
    assert!(request.starts_with("POST /v1/completions ") && request.contains("\"prompt\":\"Hallo\""));
}

#[test]
fn a_busy_endpoint_is_asked_again_and_a_refusal_is_not() {
    let busy = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy".to_owned();
    let (endpoint, server) = serve(vec![busy.clone(), busy.clone(), chunked(EVENTS, 30)]);
    assert_eq!(ask(&endpoint, true).expect("an answer").0, "Grüß dich");
    assert_eq!(server.join().expect("served").len(), 3);

    let (endpoint, server) = serve(vec![busy.clone(), busy.clone(), busy]);
    let refused = |status, message: &str| EndpointError::Refused {
        status,
        message: message.to_owned(),
    };
    assert_eq!(ask(&endpoint, true), Err(refused(503, "busy")));
    assert_eq!(server.join().expect("served").len(), 3);

    let no = "HTTP/1.1 401 No\r\nContent-Length: 15\r\n\r\nno: secret? no!".to_owned();
    let (endpoint, server) = serve(vec![no]);
    assert_eq!(ask(&endpoint, true), Err(refused(401, "no: [key]? no!")));
    assert_eq!(server.join().expect("served").len(), 1);
}

#[test]
fn an_endpoint_that_says_nothing_or_is_not_there_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let endpoint = Endpoint {
        address: Address::parse(&format!("http://127.0.0.1:{port}")).expect("an address"),
        key: None,
        model: "m".to_owned(),
        timeout: Duration::from_millis(300),
        retries: 0,
    };
    let since = Instant::now();
    assert_eq!(ask(&endpoint, true), Err(EndpointError::Timeout));
    assert!(since.elapsed() < Duration::from_secs(3));
    drop(listener);
    assert!(matches!(ask(&endpoint, true), Err(EndpointError::Unreachable(_))));
    let cut = chunked(EVENTS, 30);
    let (endpoint, server) = serve(vec![cut[..cut.len() - 60].to_owned()]);
    assert!(matches!(
        ask(&endpoint, true),
        Err(EndpointError::Unreachable(_) | EndpointError::Malformed(_))
    ));
    server.join().expect("served");
    let vectors = Stream::open(&endpoint, &form(true, Part::Vectors { rows: 1 }), &sampling());
    assert!(matches!(vectors, Err(EndpointError::Vectors)));
}

#[test]
fn addresses_are_plain_http() {
    let address = |host: &str, port, path: &str| {
        Some(Address {
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        })
    };
    assert_eq!(
        Address::parse("http://localhost:8080/v1"),
        address("localhost", 8080, "/v1")
    );
    assert_eq!(Address::parse("http://host"), address("host", 80, ""));
    assert_eq!(Address::parse("http://[::1]:11434/v1/"), address("[::1]", 11434, "/v1"));
    assert_eq!(Address::parse("http://[::1]/v1"), address("[::1]", 80, "/v1"));
    for bad in [
        "https://host",
        "host:80",
        "http://",
        "http://a b",
        "http://host:x",
        "http://host/\r\nX: y",
    ] {
        assert_eq!(Address::parse(bad), None, "{bad}");
    }
}
