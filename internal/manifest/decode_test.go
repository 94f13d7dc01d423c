package manifest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/levada-io/levada/internal/manifest"
)

// TestBrokenJSON: a file that says it is JSON is read as JSON, and its errors are those of JSON.
func TestBrokenJSON(t *testing.T) {
	const head = `{"apiVersion": "numaflow.numaproj.io/v1alpha1", "kind": "MonoVertex", "metadata": {"name": "m"}, `
	for _, c := range []struct{ name, text, want string }{
		{"a comma too many", "{\"kind\": \"X\",\n}", "p.json:2:1: error LV1001: not JSON: invalid character '}' looking for beginning of object key string"},
		{"an end too early", `{"kind": ["X"`, "p.json:1:1: error LV1001: not JSON: unexpected EOF"},
		{"too deep", strings.Repeat("[", 200), "p.json:1:1: error LV1003: fields lie more than 100 levels deep in one another"},
		{
			"a field twice", head + `"spec": {"source": {"http": {}}, "sink": {"log": {}, "log": {}}}}`,
			`p.json:1:151: error LV1005: "log" is there twice; the first is in line 1`,
		},
		{
			"a field twice in an item", `{"kind": "List", "items": [` + head + `"spec": {"source": {"http": {}}, "sink": {"log": {}, "log": {}}}}]}`,
			`p.json:1:178: error LV1005: "log" is there twice; the first is in line 1`,
		},
		{"items that are none", `{"kind": "List", "items": 7}`, "p.json:1:27: error LV1011: items is not a list"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, problems := manifest.Decode("p.json", []byte(c.text))
			var lines []string
			for _, p := range problems {
				lines = append(lines, p.String())
			}
			if diff := cmp.Diff(c.want, strings.Join(lines, "\n")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseBufferConfig(t *testing.T) {
	if c, err := manifest.ParseBufferConfig(nil); err != nil || c.Stream.MaxMsgs != nil {
		t.Error(c, err)
	}
	c, err := manifest.ParseBufferConfig(new("stream:\n  maxMsgs: 5\n  duplicates: 90s\nconsumer: {ackWait: 30s}\n"))
	if err != nil || *c.Stream.MaxMsgs != 5 || c.Stream.Duplicates.Duration != 90*time.Second || c.Consumer.AckWait.Duration != 30*time.Second {
		t.Error(c, err)
	}
	for _, bad := range []string{"a: [", "- a", "strem: {}", "stream: {maxAge: 5}", "stream: {}\nstream: {}", "a: &a [*a]"} {
		if _, err := manifest.ParseBufferConfig(&bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
