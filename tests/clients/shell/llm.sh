# The `llm` command. Each prompt is a process of its own; the session is what makes a conversation of them.

cat > "$(dirname "$(llm logs path)")/extra-openai-models.yaml" <<END
- model_id: baton
  model_name: claude-sonnet-5-5
  api_base: $BATON/v1
  headers: {X-Session-Id: $SESSION}
- model_id: baton-tools
  model_name: claude-sonnet-5-5
  api_base: $BATON/v1
  headers: {X-Session-Id: $SESSION-tools}
  supports_tools: true
END
llm keys set openai --value none

llm -m baton "My name is Ada."
llm -m baton --no-stream "What is my name?"

# A prompt with tools sends all of its messages each time: they are a session of their own, gone on with by -c.
weather='def weather(city: str) -> str: return f"18 degrees in {city}"'
llm -m baton-tools --functions "$weather" 'call weather with {"city": "Paris"}'
llm -m baton-tools --functions "$weather" -c 'call weather with {"city": "Oslo"}'
