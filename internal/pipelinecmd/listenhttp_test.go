package pipelinecmd

import (
	"strings"
	"testing"
)

func TestListenHTTPTakesAnAddressWithoutAPort(t *testing.T) {
	for text, want := range map[string]string{"0.0.0.0": "0.0.0.0", "::": "::", "[::1]": "::1", "10.1.2.3": "10.1.2.3", "localhost": "localhost"} {
		var h hostFlag
		if err := h.Set(text); err != nil || string(h) != want {
			t.Errorf("%q: %q, %v", text, h, err)
		}
	}
	for _, text := range []string{"", ":8443", "0.0.0.0:8443", "[::]:8443", "http://0.0.0.0"} {
		var h hostFlag
		if err := h.Set(text); err == nil || !strings.Contains(err.Error(), "source.http.ports") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
