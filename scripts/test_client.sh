#!/usr/bin/env bash
# Runs ./client.sh against a running gateway, command by command, and says what each one answered.
# CHIMERA_URL, CHIMERA_API_KEY and ADMIN_TOKEN are those of client.sh. Exit status: 0 if all is well, else 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

URL=${CHIMERA_URL:-http://127.0.0.1:8000}
PASSED=0 FAILED=0 SPAWNED=''

short() { # TEXT: its last line that is not empty, at most 90 characters
  local line last=''
  while IFS= read -r line; do
    if [[ -n $line ]]; then last=$line; fi
  done <<<"$1"
  printf '%s' "${last:0:90}"
}

step() { # PATTERN WORD...: run ./client.sh WORD..., which must succeed and print what matches PATTERN -> OUTPUT
  local pattern=$1 status=0 started=$SECONDS verdict=ok word
  shift
  OUTPUT=$(./client.sh "$@" 2>&1) || status=$?
  if [[ $OUTPUT == 'client.sh: 409: '* ]]; then
    verdict=skip # the machine has no room for what was asked
  elif ((status)) || [[ ! $OUTPUT =~ $pattern ]]; then
    verdict=FAIL
  fi
  printf '%-4s %3ss  ./client.sh' "$verdict" "$((SECONDS - started))"
  for word in "$@"; do
    if [[ $word == *[[:space:]]* ]]; then printf " '%s'" "$word"; else printf ' %s' "$word"; fi
  done
  printf '\n            %s\n' "$(short "$OUTPUT")"
  case $verdict in
    ok) PASSED=$((PASSED + 1)); return ;;
    skip) return ;;
  esac
  FAILED=$((FAILED + 1))
  if ((status)); then
    printf '            exit status %s\n' "$status"
  else
    printf '            what was expected: %s\n' "$pattern"
  fi
}

prune_spawned() {
  if [[ -n $SPAWNED ]]; then
    ./client.sh prune "$SPAWNED" >/dev/null || true # we are leaving, and client.sh has said what is wrong
  fi
}
trap prune_spawned EXIT
trap 'exit 130' INT TERM

if ! REASON=$(./client.sh list 2>&1); then
  printf 'test_client.sh: %s\n' "${REASON#client.sh: }" >&2
  exit 1
fi
MODEL=$(./client.sh list --json)
if [[ ! $MODEL =~ \"name\":\ *\"([^\"]+)\" ]]; then
  echo "test_client.sh: the store has no model: ./client.sh pull MODEL" >&2
  exit 1
fi
MODEL=${BASH_REMATCH[1]}
printf 'client.sh against %s with %s\n\n' "$URL" "$MODEL"

step "$MODEL" list
step capabilities\|parameter_size show "$MODEL"
step '[^[:space:]]' generate --prompt 'Why is the sky blue?' --tokens 16
step '[^[:space:]]' generate --prompt 'Say "hi" in one line, then: \ / é 😀' --tokens 8 --no-stream
step '[^[:space:]]' chat --prompt 'Name three colours.' --tokens 16 --model "$MODEL"
step 'a vector of [1-9]' embed --text 'The sky is blue.'
step "$MODEL" ps
step 'ID +STATE' instances
step 'queue .*waiting' status

# Only a worker of our own is pruned.
step '"id"' spawn --wait --json
if [[ $OUTPUT =~ \"id\":\ *\"([^\"]+)\" ]]; then
  SPAWNED=${BASH_REMATCH[1]}
  step "(^|[[:space:]])$SPAWNED " instances
  step "pruned $SPAWNED" prune "$SPAWNED" --wait
  SPAWNED=''
fi

printf '\n%s ok, %s failed\n' "$PASSED" "$FAILED"
((FAILED == 0))
