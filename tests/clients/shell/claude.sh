# Claude Code. It resends its whole conversation, which is the session's; it must say nothing else in it.

export ANTHROPIC_BASE_URL=$BATON
export ANTHROPIC_API_KEY=none
export ANTHROPIC_MODEL=claude-sonnet-5-5
export ANTHROPIC_CUSTOM_HEADERS="X-Session-Id: $SESSION"
export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1

claude -p "My name is Ada."
claude -p --continue "What is my name?"
echo "It rains in Paris." > note.txt
claude -p --continue "call Read with {\"file_path\": \"$PWD/note.txt\"}" --allowedTools Read
