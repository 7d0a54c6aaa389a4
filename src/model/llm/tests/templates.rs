//! Chat templates that were not made for us: dates, marks, no place for a system turn, and what cannot be answered.

use super::made::with_model_prefix;
use crate::model::ModelError;
use crate::model::llm::{Llm, Message, Piece, describe};
use crate::model::tests::families::{Sizes, qwen3};
use serde_json::{Value, json};
use tempfile::TempDir;

const PLAIN: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
/// Knows two kinds of turns, and has them take turns.
const ALTERNATING: &str = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
    {{ raise_exception('roles have to take turns') }}{% endif %}\
    {% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}";

fn model(template: &Value) -> TempDir {
    let mut maker = qwen3(Sizes::SMALL);
    with_model_prefix(&mut maker);
    let config = json!({ "chat_template": template }).to_string();
    maker.files.push(("tokenizer_config.json", config.into_bytes()));
    maker.write()
}

fn turn(role: &str, text: &str) -> Message {
    Message {
        role: role.to_owned(),
        pieces: vec![Piece::Text(text.to_owned())],
    }
}

fn ids(template: &str, turns: &[Message]) -> Result<Vec<u32>, ModelError> {
    let pieces = Llm::open(model(&json!(template)).path()).unwrap().render(turns)?;
    Ok(pieces
        .into_iter()
        .flat_map(|piece| match piece {
            Piece::Tokens(ids) => ids,
            _ => Vec::new(),
        })
        .collect())
}

fn text(template: &str, turns: &[Message]) -> Result<String, ModelError> {
    let llm = Llm::open(model(&json!(template)).path()).unwrap();
    Ok(llm.tokenizer().decode(&ids(template, turns)?))
}

fn refused(template: &Value) -> ModelError {
    describe(model(template).path()).err().expect("must fail")
}

#[test]
fn marks_leave_a_prompt_as_it_is_and_dates_are_of_today() {
    let turns = [turn("system", "Be kind."), turn("user", "Hello")];
    let marked = PLAIN.replace(
        "{{ '<|im_start|>' + m.role",
        "{% generation %}{% endgeneration %}{{ '<|im_start|>' + m.role",
    );
    assert_ne!(marked, PLAIN);
    assert_eq!(ids(&marked, &turns).unwrap(), ids(PLAIN, &turns).unwrap());
    let dated = format!("{{{{ 'Today is ' + strftime_now('%Y') + '. ' }}}}{PLAIN}");
    assert!(describe(model(&json!(dated)).path()).is_ok());
    let found = text(&dated, &turns).unwrap();
    let year = found.strip_prefix("Today is ").and_then(|rest| rest.get(..4)).unwrap();
    assert!(year.parse::<u32>().unwrap() >= 2025, "{found}");
    assert_eq!(found.get(15..).unwrap(), text(PLAIN, &turns).unwrap(), "{found}");
}

#[test]
fn a_template_that_cannot_answer_a_user_is_refused_where_it_is_registered() {
    assert!(describe(model(&json!(PLAIN)).path()).is_ok());
    assert!(describe(model(&Value::Null).path()).is_ok());
    for (template, named) in [
        (json!("{{ web_search('x') }}{{ messages[0].content }}"), "web_search"),
        (json!("{% fancy %}{{ messages[0].content }}"), "fancy"),
        (json!("{% generation %}{{ messages[0].content }}"), "end of input"),
        (json!("{{ raise_exception('no users here') }}"), "no users here"),
        (json!("nothing of the messages"), "leaves out the user turn"),
        (
            json!("{{ messages[0].content | replace('0', '9') }}"),
            "changes the contents",
        ),
        (json!(7), "not a text"),
        (json!([{"name": "tool_use", "template": PLAIN}]), "named \"default\""),
    ] {
        let error = refused(&template);
        let ModelError::Template(what) = &error else {
            panic!("{error}")
        };
        assert!(what.contains(named) && !what.contains('\n'), "{named}: {what}");
    }
    let several = json!([{"name": "tool_use", "template": "{% fancy %}"}, {"name": "default", "template": PLAIN}]);
    assert!(describe(model(&several).path()).is_ok());
}

#[test]
fn a_system_text_without_a_place_goes_in_front_of_the_first_user_turn() {
    let (system, user) = (turn("system", "Be brief."), turn("user", "Hello"));
    assert!(describe(model(&json!(ALTERNATING)).path()).is_ok());
    assert_eq!(
        text(ALTERNATING, std::slice::from_ref(&user)).unwrap(),
        "[INST] Hello [/INST]"
    );
    let both = [system.clone(), user.clone()];
    assert_eq!(text(ALTERNATING, &both).unwrap(), "[INST] Be brief.\n\nHello [/INST]");
    let more = [
        system.clone(),
        user.clone(),
        turn("assistant", "Yes?"),
        turn("user", "Go on"),
    ];
    assert_eq!(
        text(ALTERNATING, &more).unwrap(),
        "[INST] Be brief.\n\nHello [/INST]Yes?[INST] Go on [/INST]"
    );
    // One that leaves it out without a word, and one with a place for it, which is used.
    let silent = "{% for m in messages if m.role == 'user' %}<{{ m.content }}>{% endfor %}";
    assert_eq!(text(silent, &both).unwrap(), "<Be brief.\n\nHello>");
    let placed = "{{ messages[0].content }}|{% for m in messages[1:] %}<{{ m.content }}>{% endfor %}";
    assert_eq!(text(placed, &both).unwrap(), "Be brief.|<Hello>");
    // What a user writes is text there too.
    let literal = [turn("system", "<|im_end|>"), user.clone()];
    let found = ids(ALTERNATING, &literal).unwrap();
    assert!(found.iter().all(|id| *id < 257), "{found:?}");
    // Vectors keep their place behind it.
    let llm = Llm::open(model(&json!(ALTERNATING)).path()).unwrap();
    let vectors = Piece::Vectors(vec![vec![0.5; llm.config().hidden]]);
    let mixed = Message {
        role: "user".to_owned(),
        pieces: vec![vectors.clone(), Piece::Text(" Hello".to_owned())],
    };
    let pieces = llm.render(&[system, mixed]).unwrap();
    let [Piece::Tokens(before), middle, Piece::Tokens(_)] = pieces.as_slice() else {
        panic!("{pieces:?}")
    };
    assert_eq!(llm.tokenizer().decode(before), "[INST] Be brief.\n\n");
    assert_eq!(*middle, vectors);
}

#[test]
fn turns_that_no_way_helps_are_an_error_of_one_line() {
    let never = "{{ messages[0].content }}{% if messages | length != 1 or messages[0].role == 'system' %}\
        {{ raise_exception('only\none ' ~ 'turn ' * 90) }}{% endif %}";
    let turns = [turn("user", "Hello"), turn("assistant", "Yes?"), turn("user", "Go on")];
    for turns in [turns.to_vec(), [&[turn("system", "Be brief.")], &turns[..]].concat()] {
        let error = text(never, &turns).unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, ModelError::Turns(_)), "{said}");
        assert!(
            said.starts_with("chat template: only one turn") && said.len() < 200,
            "{said}"
        );
    }
}
