package main

import (
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/commandline"
)

// The proxy is a command of levada, with the client of Kubernetes; internal/proxy/command tests the rest of it.
func TestProxy(t *testing.T) {
	t.Setenv("KUBECONFIG", t.TempDir()+"/none")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	o := levada(t, "proxy", "--listen", "127.0.0.1:0", "--admin", "", "--backend", "kubernetes:///shop/orders:8080")
	if o.Code != commandline.ExitProblems || !strings.Contains(o.Stderr, "KUBECONFIG") {
		t.Errorf("%+v", o)
	}
	if o := levada(t, "proxy", "--help"); !strings.Contains(o.Stdout, "dns+srv:///name, file:///path or kubernetes:///namespace/service:port\n") {
		t.Errorf("%+v", o)
	}
	if o := levada(t, "proxy"); o.Code != commandline.ExitUsage || !strings.Contains(o.Stderr, "levada: say where calls go") {
		t.Errorf("%+v", o)
	}
	if o := levada(t, "proxy", "drain", "--help"); o.Code != 0 || !strings.Contains(o.Stdout, "\n  levada proxy drain --admin") {
		t.Errorf("%+v", o)
	}
}

// The help promises no cluster.
func TestHelp(t *testing.T) {
	if o := levada(t, "--help"); o.Code != 0 || !strings.Contains(o.Stdout, "not yet in a cluster") {
		t.Errorf("%+v", o)
	}
}

// A command that does not exist is a mistake on the command line, whichever group it would be of.
func TestUnknownCommands(t *testing.T) {
	for _, args := range []string{"foo", "proxy foo", "proxy top foo", "stream foo", "stream list foo", "stream quarantine foo", "deadletters foo", "completion foo"} {
		o := levada(t, strings.Fields(args)...)
		if o.Code != commandline.ExitUsage || o.Stdout != "" || !strings.HasPrefix(o.Stderr, `levada: unknown command "foo" for "levada`) {
			t.Errorf("%s: %+v", args, o)
		}
	}
	for _, args := range []string{"", "stream", "stream quarantine", "help stream", "stream --help"} {
		if o := levada(t, strings.Fields(args)...); o.Code != 0 || o.Stderr != "" || !strings.Contains(o.Stdout, "Available Commands") {
			t.Errorf("%s: %+v", args, o)
		}
	}
}

// A user who checks a configuration of the proxy as a manifest gets the command for it.
func TestValidateProxyConfiguration(t *testing.T) {
	for file, want := range map[string]bool{"../../examples/proxy/simple.yaml": true, "../../examples/proxy/full.yaml": true, "proxy.go": false} {
		if o := levada(t, "validate", file); o.Code != commandline.ExitProblems || strings.Contains(o.Stdout, "levada proxy validate") != want {
			t.Errorf("%s: %+v", file, o)
		}
	}
}
