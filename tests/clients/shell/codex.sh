# Codex. It speaks OpenAI's Responses API only, which Baton does not have yet.

export CODEX_HOME=$HOME/codex
mkdir "$CODEX_HOME"
cat > "$CODEX_HOME/config.toml" <<END
model = "claude-sonnet-5-5"
model_provider = "baton"
[model_providers.baton]
name = "Baton"
base_url = "$BATON/v1"
wire_api = "responses"
http_headers = { "X-Session-Id" = "$SESSION" }
request_max_retries = 0
stream_max_retries = 0
END
codex exec --skip-git-repo-check "My name is Ada."
