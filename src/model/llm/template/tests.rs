//! Dates and marks by hand, and errors of one line.

use super::*;

fn run(source: &str) -> Result<String, ModelError> {
    let message = context! { role => "user", content => "hello" };
    Template::new(source).run(&[message], true, ["<s>", "</s>"])
}

#[test]
fn dates_are_written_as_strftime_writes_them() {
    let moment: Zoned = "2026-02-03T04:05:06+00:00[UTC]".parse().unwrap();
    for (format, expected) in [
        ("%d %b %Y", "03 Feb 2026"),
        ("%A, %B %d, %Y", "Tuesday, February 03, 2026"),
        ("%a %-d.%-m.%y", "Tue 3.2.26"),
        ("%Y-%m-%d %H:%M:%S", "2026-02-03 04:05:06"),
        ("%I:%M %p, day %j", "04:05 AM, day 034"),
        ("100%%", "100%"),
        ("", ""),
    ] {
        assert_eq!(date(format, &moment).unwrap(), expected, "{format}");
    }
    // Around midnight the day may change between the three.
    let format = "%d %b %Y";
    let today = || Zoned::now().strftime(format).to_string();
    let before = today();
    let found = run("Today is {{ strftime_now('%d %b %Y') }}.").unwrap();
    assert!(
        [before, today()].iter().any(|day| found == format!("Today is {day}.")),
        "{found}"
    );
    let error = run("{{ strftime_now('%!') }}").unwrap_err();
    assert!(
        matches!(&error, ModelError::Template(what) if what.contains("strftime_now")),
        "{error}"
    );
}

#[test]
fn marks_print_nothing_and_keep_their_control_of_white_space() {
    for (marked, expected) in [
        ("a{% generation %}b{% endgeneration %}c", "abc"),
        ("a {%- generation -%} b {%- endgeneration -%} c", "abc"),
        ("a\n  {% generation %}\nb\n{% endgeneration %}\nc", "a\nb\nc"),
        ("{%generation%}{{ messages[0].content }}{%endgeneration%}", "hello"),
        (
            "{% for m in messages %}{% generation %}{{ m.role }}{{ loop.index }}{% endgeneration %}{% endfor %}",
            "user1",
        ),
        // Neither text nor strings, comments and raw blocks hold a mark.
        ("generation {{ '{% generation %}' }}", "generation {% generation %}"),
        ("{{ \"it's \\\"{% generation %}\" }}", "it's \"{% generation %}"),
        ("a{# {% generation %} ' #}b", "ab"),
        ("{% raw %}{% generation %}{{ '{% endraw %}'", "{% generation %}{{ ''"),
        ("{%- raw -%} {% endgeneration %} {% endraw %}", "{% endgeneration %} "),
        (
            "{{ {'a': {'b': '}}'}}['a']['b'] }}{% generation %}c{% endgeneration %}",
            "}}c",
        ),
        ("{% set generation = 5 %}{{ generation }}", "5"),
    ] {
        assert_eq!(run(marked).unwrap(), expected, "{marked}");
    }
    // What the blocks set stays inside, as in the library.
    assert_eq!(
        run("{% set x = 1 %}{% generation %}{% set x = 2 %}{% endgeneration %}{{ x }}").unwrap(),
        "1"
    );
}

#[test]
fn marks_without_an_end_and_cut_templates_are_errors() {
    for source in [
        "{% generation %}",
        "a{% endgeneration %}",
        "{% raw %}{% x",
        "{{ 'a",
        "{%",
        "{{",
        "{# a",
        "{% raw",
        "{{ {",
    ] {
        let error = run(source).unwrap_err();
        assert!(matches!(error, ModelError::Template(_)), "{source}: {error}");
    }
}

#[test]
fn errors_are_one_short_line_without_the_source() {
    let lines = "\n{# a comment of the template's #}".repeat(30);
    for (source, wanted) in [
        ("{{ web_search('x') }}", "web_search"),
        ("{% fancy %}", "fancy"),
        ("{{ messages | sparkle }}", "sparkle"),
        (
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "fuel",
        ),
    ] {
        let error = run(&format!("{lines}{source}{lines}")).unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, ModelError::Template(_)), "{said}");
        assert!(said.contains(wanted) && !said.contains("a comment"), "{said}");
        assert!(!said.contains('\n') && said.chars().count() < 200, "{said}");
    }
    let error = run("{{ raise_exception('no\\nsystem ' ~ 'turn ' * 100) }}").unwrap_err();
    let ModelError::Turns(said) = &error else {
        panic!("{error}")
    };
    assert!(
        said.starts_with("no system turn turn") && said.ends_with("...") && said.len() <= MOST,
        "{said}"
    );
    // From inside of a macro as well.
    let error = run("{% macro m() %}{{ raise_exception('inside') }}{% endmacro %}{{ m() }}").unwrap_err();
    assert!(matches!(&error, ModelError::Turns(said) if said == "inside"), "{error}");
}

#[test]
fn tools_are_none_as_where_nobody_gives_any() {
    let source = "{% if tools is defined and tools is none and documents is none %}none{% endif %}";
    assert_eq!(run(source).unwrap(), "none");
}
