package config_test

import (
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/proxy/config"
)

// TestHeaderProblems: a rule that would break calls, or do nothing, is refused with what to do instead.
func TestHeaderProblems(t *testing.T) {
	const front = "backends: [{name: b, target: 'h:1'}]\nlisteners: [{address: ':1'}]\n"
	for text, want := range map[string][]string{
		"headers: {request: {set: [{name: ':path', value: /x}]}}":                          {"routes[0].headers.request.set[0].name", "pseudo-header"},
		"headers: {request: {remove: [':authority']}}":                                     {"routes[0].headers.request.remove[0]", "headers.authority"},
		"headers: {request: {add: [{name: Host, value: x}]}}":                              {"routes[0].headers.request.add[0].name", "headers.authority"},
		"headers: {response: {set: [{name: Grpc-Status, value: '0'}]}}":                    {"routes[0].headers.response.set[0].name", "reserved by gRPC"},
		"headers: {response: {remove: [content-type]}}":                                    {"routes[0].headers.response.remove[0]", "frame"},
		"headers: {request: {remove: [TE]}}":                                               {"routes[0].headers.request.remove[0]", "frame"},
		"headers: {request: {set: [{name: connection, value: close}]}}":                    {"routes[0].headers.request.set[0].name", "one connection"},
		"headers: {request: {set: [{name: 'a b', value: x}]}}":                             {"routes[0].headers.request.set[0].name", "not a header name"},
		"headers: {request: {set: [{name: a, value: \"x\\ny\"}]}}":                         {"routes[0].headers.request.set[0].value", "printable ASCII"},
		"headers: {request: {set: [{name: a, value: ' x'}]}}":                              {"routes[0].headers.request.set[0].value", "spaces around"},
		"headers: {request: {set: [{name: a-bin, value: '%%'}]}}":                          {"routes[0].headers.request.set[0].value", "base64"},
		"headers: {request: {set: [{name: a, value: x}], remove: [A]}}":                    {"routes[0].headers.request.remove[0]", "is in set"},
		"headers: {request: {set: [{name: a, value: x}, {name: A, value: y}]}}":            {"routes[0].headers.request.set[1].name", "there twice"},
		"headers: {authority: 'http://x'}":                                                 {"routes[0].headers.authority", "without a scheme"},
		"headers: {request: {set: [{name: a, value: " + strings.Repeat("v", 9000) + "}]}}": {"routes[0].headers.request", "at most 8192"},
		"forwarded: {policy: apend}":                                                       {"routes[0].forwarded.policy", "append"},
		"forwarded: {trusted: [10.0.0.0/99]}":                                              {"routes[0].forwarded.trusted[0]", "10.0.0.0/8"},
		"forwarded: {policy: replace, trusted: [10.0.0.0/8]}":                              {"routes[0].forwarded.trusted", "policy append"},
		"forwarded: {policy: strip, standard: true}":                                       {"routes[0].forwarded.standard", "writes no headers"},
		"forwarded: {clientCertificate: details}":                                          {"routes[0].forwarded.clientCertificate", "tls.clientCA"},
	} {
		_, err := config.Parse("p.yaml", []byte(front+"routes:\n- "+text))
		if err == nil {
			t.Errorf("%s: no error", text)
			continue
		}
		if lines := strings.Split(err.Error(), "\n"); len(lines) != 1 {
			t.Errorf("%s: %d errors: %v", text, len(lines), err)
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: the error does not say %q: %v", text, w, err)
			}
		}
	}
	if _, err := config.Parse("p.yaml", []byte(front+"routes:\n- headers: {request: {add: [{name: a, value: x}, {name: a, value: y}], remove: [x-forwarded-for]}, response: {set: [{name: s-bin, value: AAEC}]}}")); err != nil {
		t.Error(err)
	}
}
