//! The routes, in one table.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    middleware,
    response::Response,
    routing::{MethodRouter, get, post},
};

use crate::{
    access, admin, anthropic,
    app::App,
    engine_view, openai, openapi, page,
    problem::{Dialect, Problem},
    text,
};

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// Whether no key is needed.
    pub(crate) open: bool,
}

const fn route(method: &'static str, path: &'static str) -> Route {
    Route { method, path, open: false }
}

const fn open(path: &'static str) -> Route {
    Route { method: "GET", path, open: true }
}

/// All routes, with what answers them.
fn table() -> Vec<(Route, MethodRouter<Arc<App>>)> {
    vec![
        (open("/"), get(page::index)),
        (open("/static/{*path}"), get(page::file)),
        (open("/health"), get(admin::health)),
        (open("/openapi.json"), get(openapi::document)),
        (route("GET", "/metrics"), get(admin::metrics)),
        (route("GET", "/v1/models"), get(admin::models)),
        (route("GET", "/v1/models/{*model}"), get(admin::model)),
        (route("POST", "/v1/models/load"), speak(Dialect::OpenAi, admin::load)),
        (route("POST", "/v1/models/unload"), speak(Dialect::OpenAi, admin::unload)),
        (route("GET", "/v1/engine"), get(engine_view::snapshot)),
        (route("GET", "/v1/engine/events"), get(engine_view::events)),
        (route("POST", "/v1/chat/completions"), speak(Dialect::OpenAi, openai::chat::answer)),
        (route("POST", "/v1/completions"), speak(Dialect::OpenAi, openai::completions::answer)),
        (route("POST", "/v1/responses"), speak(Dialect::OpenAi, openai::responses::answer)),
        (route("POST", "/v1/embeddings"), speak(Dialect::OpenAi, openai::embeddings::answer)),
        (route("POST", "/v1/messages"), speak(Dialect::Anthropic, anthropic::messages::answer)),
        (route("POST", "/v1/messages/count_tokens"), speak(Dialect::Anthropic, anthropic::messages::count)),
        (route("POST", "/tokenize"), speak(Dialect::OpenAi, text::tokenize)),
        (route("POST", "/detokenize"), speak(Dialect::OpenAi, text::detokenize)),
    ]
}

/// A handler that takes JSON and whose problems are told in the shapes of an API.
fn speak<F, R>(dialect: Dialect, handler: F) -> MethodRouter<Arc<App>>
where
    F: Fn(Arc<App>, Request) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Response, Problem>> + Send + 'static,
{
    post(move |State(app): State<Arc<App>>, request: Request| async move {
        handler(app, request).await.unwrap_or_else(|problem| problem.response(dialect))
    })
}

/// The route of a path, whatever the method.
pub(crate) fn known(path: &str) -> Option<Route> {
    let matches = |known: &str| match known.split_once("{*") {
        Some((prefix, _)) => path.len() > prefix.len() && path.starts_with(prefix),
        None => path == known,
    };
    // Exact ones before those that take any rest.
    let all = || ALL.iter().filter(|r| matches(r.path));
    all().find(|r| r.path == path).or_else(|| all().next()).copied()
}

/// The routes of the table.
pub(crate) static ALL: std::sync::LazyLock<Vec<Route>> =
    std::sync::LazyLock::new(|| table().into_iter().map(|(route, _)| route).collect());

/// What answers requests.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let mut router = Router::new();
    for (route, methods) in table() {
        router = router.route(route.path, methods);
    }
    router
        .fallback(access::nowhere)
        .method_not_allowed_fallback(access::other_method)
        .layer(middleware::from_fn_with_state(app.clone(), access::guard))
        .with_state(app.clone())
}
