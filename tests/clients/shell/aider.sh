# aider: one edit of one file of a git repository. It keeps the conversation itself, so it has no session.

git init --quiet
git config user.name Ada
git config user.email ada@example.com
printf 'def greet():\n    return "Hello"\n' > greet.py
git add greet.py
git commit --quiet --message "Say hello"

export OPENAI_API_BASE=$BATON/v1
export OPENAI_API_KEY=none
aider --model openai/claude-sonnet-5-5 --edit-format whole --yes-always \
  --no-show-model-warnings --no-check-update --analytics-disable --no-gitignore \
  --message 'repeat after me: greet.py
```
def greet():
    return "Hello, Ada"
```
' greet.py

git rev-list --count HEAD
cat greet.py
