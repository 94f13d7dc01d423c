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
	if o.code != commandline.ExitProblems || !strings.Contains(o.stderr, "KUBECONFIG") {
		t.Errorf("%+v", o)
	}
	if o := levada(t, "proxy"); o.code != commandline.ExitUsage || !strings.Contains(o.stderr, "levada: say where calls go") {
		t.Errorf("%+v", o)
	}
	if o := levada(t, "proxy", "drain", "--help"); o.code != 0 || !strings.Contains(o.stdout, "\n  levada proxy drain --admin") {
		t.Errorf("%+v", o)
	}
}
