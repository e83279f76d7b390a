//! What all operations of the OpenAPI document have in common: the token, stream names and errors.

use utoipa::Modify;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa::openapi::response::Response;
use utoipa::openapi::schema::{Components, ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, PathItem, Ref, RefOr};

use crate::http::problem::PROBLEM_MEDIA_TYPE;

const PROBLEM_SCHEMA_NAME: &str = "ProblemDocument";
const PROBLEM_RESPONSE_NAME: &str = "Problem";
const TOKEN_SECURITY_SCHEME: &str = "token";

/// Grammar of stream names, as far as a regular expression tells: no segment is `.` or `..` either.
const STREAM_NAME_PATTERN: &str = "^[A-Za-z0-9_.~-]+(/[A-Za-z0-9_.~-]+){0,3}$";
const MAX_STREAM_NAME_LENGTH: usize = 128;

/// Adds to each operation the token that it requires, the grammar of stream names and the form of its errors.
pub(super) struct CommonOperationParts;

impl Modify for CommonOperationParts {
    fn modify(&self, document: &mut OpenApi) {
        let components = document.components.get_or_insert_with(Components::new);
        let token = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "`auth.api_token`, or another token with `api = true`; for `GET`, `api = \"read\"` is enough",
            ))
            .build();
        components
            .security_schemes
            .insert(TOKEN_SECURITY_SCHEME.to_owned(), RefOr::T(SecurityScheme::Http(token)));
        let mut problem = Response::new("an error, as a problem document (RFC 9457)");
        set_problem_response_content(&mut problem);
        components
            .responses
            .insert(PROBLEM_RESPONSE_NAME.to_owned(), RefOr::T(problem));
        for (path, item) in &mut document.paths.paths {
            for operation in operations_of_path_item(item) {
                add_common_parts(operation);
                operation.security = Some(match path.ends_with("/openapi.json") {
                    true => Vec::new(),
                    false => vec![SecurityRequirement::new(TOKEN_SECURITY_SCHEME, Vec::<String>::new())],
                });
            }
        }
    }
}

fn operations_of_path_item(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem {
        get,
        put,
        post,
        delete,
        patch,
        ..
    } = item;
    [get, put, post, delete, patch].into_iter().flatten()
}

fn add_common_parts(operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(parameter) = parameter
            && parameter.parameter_in == ParameterIn::Path
            && parameter.name == "stream"
        {
            describe_stream_name(parameter);
        }
    }
    let responses = &mut operation.responses.responses;
    for (status, response) in responses.iter_mut() {
        if let RefOr::T(response) = response
            && status.starts_with(['4', '5'])
        {
            set_problem_response_content(response);
        }
    }
    responses.insert(
        "default".to_owned(),
        RefOr::Ref(Ref::from_response_name(PROBLEM_RESPONSE_NAME)),
    );
}

fn set_problem_response_content(response: &mut Response) {
    let content = Content::new(Some(Ref::from_schema_name(PROBLEM_SCHEMA_NAME)));
    response
        .content
        .insert(PROBLEM_MEDIA_TYPE.to_owned(), RefOr::T(content));
}

fn describe_stream_name(parameter: &mut Parameter) {
    let name = ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::String))
        .min_length(Some(1))
        .max_length(Some(MAX_STREAM_NAME_LENGTH))
        .pattern(Some(STREAM_NAME_PATTERN));
    parameter.schema = Some(RefOr::T(Schema::Object(name.build())));
}
