package render_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/sink/render"
	"github.com/levada-io/levada/internal/flow"
)

func TestAppend(t *testing.T) {
	m := &flow.Message{ID: "in/0/7", Keys: []string{"a", `b"`}, Value: []byte("x\ty"), EventTime: time.Date(2026, 5, 6, 7, 8, 9, 10, time.UTC).UnixNano()}
	for _, h := range []string{"h", "i", "h"} {
		m.Headers = flow.AppendHeader(m.Headers, h, h+"!")
		m.Headers = flow.AppendHeader(m.Headers, h, "second")
	}
	if got := string(render.Raw.Append([]byte("> "), m)); got != "> x\ty\n" {
		t.Fatalf("%q", got)
	}
	const want = `{"id":"in/0/7","keys":["a","b\""],"eventTime":"2026-05-06T07:08:09.00000001Z","headers":{"h":"h!","i":"i!"},"value":"x\ty"}` + "\n"
	if got := string(render.JSON.Append(nil, m)); got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
	m = &flow.Message{Value: []byte{0xff, 0}}
	if got := string(render.JSON.Append(nil, m)); !strings.Contains(got, `"valueBase64":"/wA="`) || strings.Contains(got, `"value"`) {
		t.Fatalf("%s", got)
	}
}

func TestParse(t *testing.T) {
	if f, err := render.Parse(""); f != render.Raw || err != nil {
		t.Fatal(f, err)
	}
	if _, err := render.Parse("xml"); err == nil || !strings.Contains(err.Error(), "raw or json") {
		t.Fatal(err)
	}
}

func FuzzJSON(f *testing.F) {
	f.Add("id", []byte("v"), "name", "value")
	f.Add("\xff\x00\u2028", []byte("\xed\xa0\x80\""), "\x7f", "\\")
	f.Fuzz(func(t *testing.T, id string, value []byte, name, header string) {
		m := flow.Message{ID: id, Value: value, Keys: []string{id}, Headers: flow.AppendHeader(nil, name, header)}
		line := render.JSON.Append(nil, &m)
		if n := strings.Count(string(line), "\n"); n != 1 {
			t.Fatalf("%d line ends", n)
		}
		var got struct {
			ID          string
			Headers     map[string]string
			Value       *string
			ValueBase64 []byte
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		valid := func(s string) string { return string([]rune(s)) } // each bad byte becomes U+FFFD
		if got.ID != valid(id) || got.Headers[valid(name)] != valid(header) {
			t.Fatalf("%s", line)
		}
		if got.Value != nil && *got.Value != string(value) || got.Value == nil && string(got.ValueBase64) != string(value) {
			t.Fatalf("%s", line)
		}
	})
}
