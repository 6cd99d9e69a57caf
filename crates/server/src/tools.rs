//! The tools of a request, and whether they must be called.

use serde_json::{Value, json};

use crate::{
    fields::{Fields, wrong},
    problem::Problem,
};

/// Whether tools are called.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Choice {
    /// The model decides.
    #[default]
    Auto,
    /// Never: the model does not hear of them.
    None,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// The tools of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ToolUse {
    /// Each as `{"type": "function", "function": {"name", "description", "parameters"}}`.
    pub(crate) list: Vec<Value>,
    pub(crate) choice: Choice,
    /// No more than one call.
    pub(crate) one_only: bool,
}

impl ToolUse {
    /// The name of a tool.
    pub(crate) fn name(tool: &Value) -> &str {
        tool["function"]["name"].as_str().unwrap_or_default()
    }

    /// The tools that may be called.
    pub(crate) fn callable(&self) -> impl Iterator<Item = &Value> {
        let named = |tool: &&Value| match &self.choice {
            Choice::Auto | Choice::Required => true,
            Choice::None => false,
            Choice::Named(name) => ToolUse::name(tool) == name,
        };
        self.list.iter().filter(named)
    }

    /// Whether a reply without a call is none.
    pub(crate) fn must_call(&self) -> bool {
        matches!(self.choice, Choice::Required | Choice::Named(_))
    }

    /// Refuses choices that no tool of the list can meet.
    fn checked(self, fields: &Fields) -> Result<ToolUse, Problem> {
        let mut names: Vec<&str> = self.list.iter().map(ToolUse::name).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(fields.problem("tools", format_args!("name `{}` twice", twice[0])));
        }
        match &self.choice {
            Choice::Required if self.list.is_empty() => Err(fields.problem("tool_choice", "needs `tools`")),
            Choice::Named(name) if !names.contains(&name.as_str()) => {
                let name: String = name.chars().take(64).collect();
                Err(fields.problem("tool_choice", format_args!("names `{name}`, which is none of the `tools`")))
            }
            _ => Ok(self),
        }
    }
}

/// A tool in the form that templates know.
fn tool(
    at: &Fields,
    name: Option<String>,
    description: Option<String>,
    schema: Option<Value>,
) -> Result<Value, Problem> {
    let name = at.need("name", name)?;
    let sound = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || name.len() > 128 || !name.chars().all(sound) {
        return Err(at.problem("name", "must be 1 to 128 letters, digits, `_`, `-` and `.`"));
    }
    let schema = schema.unwrap_or_else(|| json!({ "type": "object", "properties": {} }));
    if !schema.is_object() {
        return Err(wrong(&at.path("parameters"), &schema, "a JSON schema of an object"));
    }
    let mut function = json!({ "name": name });
    if let Some(description) = description {
        function["description"] = json!(description);
    }
    function["parameters"] = schema;
    Ok(json!({ "type": "function", "function": function }))
}

/// `tools`, `tool_choice` and `parallel_tool_calls` of OpenAI's chat completions, and of its responses, where a tool's fields
/// lie beside its type.
pub(crate) fn openai(fields: &mut Fields) -> Result<ToolUse, Problem> {
    let path = fields.path("tools");
    let one = |(index, value): (usize, Value)| {
        let mut outer = Fields::of(value, format!("{path}[{index}]"))?;
        outer.word("type", &["function"])?;
        let mut own = match outer.object("function")? {
            Some(inner) => {
                outer.finish()?;
                inner
            }
            None => outer,
        };
        let (name, description) = (own.text("name")?, own.text("description")?);
        let parameters = own.take("parameters");
        own.ignore(&["strict"]);
        let tool = tool(&own, name, description, parameters)?;
        own.finish()?;
        Ok(tool)
    };
    let list = fields.list("tools")?.unwrap_or_default().into_iter().enumerate();
    let list = list.map(one).collect::<Result<Vec<_>, Problem>>()?;
    let expected = "`auto`, `none`, `required`, or the function to be called";
    let choice = match fields.take("tool_choice") {
        None => Choice::Auto,
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Choice::Auto,
            "none" => Choice::None,
            "required" => Choice::Required,
            _ => return Err(wrong(&fields.path("tool_choice"), &Value::String(word), expected)),
        },
        Some(value) => {
            let mut named = Fields::of(value, fields.path("tool_choice"))?;
            named.word("type", &["function"])?;
            let name = match named.object("function")? {
                Some(mut inner) => inner.text("name")?,
                None => named.text("name")?,
            };
            let name = named.need("name", name)?;
            named.finish()?;
            Choice::Named(name)
        }
    };
    let one_only = !fields.flag("parallel_tool_calls")?.unwrap_or(true);
    ToolUse { list, choice, one_only }.checked(fields)
}

/// `tools` and `tool_choice` of Anthropic's messages.
pub(crate) fn anthropic(fields: &mut Fields) -> Result<ToolUse, Problem> {
    let path = fields.path("tools");
    let one = |(index, value): (usize, Value)| {
        let mut own = Fields::of(value, format!("{path}[{index}]"))?;
        own.word("type", &["custom"])?;
        let (name, description) = (own.text("name")?, own.text("description")?);
        let schema = own.take("input_schema");
        own.ignore(&["cache_control", "strict", "eager_input_streaming"]);
        let tool = tool(&own, name, description, schema)?;
        own.finish()?;
        Ok(tool)
    };
    let list = fields.list("tools")?.unwrap_or_default().into_iter().enumerate();
    let list = list.map(one).collect::<Result<Vec<_>, Problem>>()?;
    let (mut choice, mut one_only) = (Choice::Auto, false);
    if let Some(mut own) = fields.object("tool_choice")? {
        let kind = own.word("type", &["auto", "any", "tool", "none"])?;
        choice = match own.need("type", kind)? {
            "auto" => Choice::Auto,
            "any" => Choice::Required,
            "none" => Choice::None,
            _ => {
                let name = own.text("name")?;
                Choice::Named(own.need("name", name)?)
            }
        };
        one_only = own.flag("disable_parallel_tool_use")?.unwrap_or(false);
        own.finish()?;
    }
    ToolUse { list, choice, one_only }.checked(fields)
}
