package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// oneOf lists what may stand in a field.
func oneOf[S ~string](values []S) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = string(v)
	}
	slices.Sort(words)
	if len(words) == 1 {
		return words[0]
	}
	return "one of " + strings.Join(words, ", ")
}

// listed joins words for a sentence: a, b and c.
func listed(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}

// enum reports a value that is not one of those that exist. Empty means the default.
func enum[S ~string](r *report, at path, code Code, value S, values ...S) {
	if value == "" || slices.Contains(values, value) {
		return
	}
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = string(v)
	}
	r.add(at, Problem{
		Code: code, Message: fmt.Sprintf("%s is %s, which does not exist", at.last(), quote(string(value))),
		Expected: oneOf(values), DidYouMean: r.suggest(string(value), words),
	})
}
