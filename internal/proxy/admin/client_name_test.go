package admin_test

import (
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/proxy/admin"
)

// A refusal at a Unix socket names the socket: "http://localhost" is not what the person wrote, and may be another proxy.
func TestAnErrorAtASocketNamesTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "a token is needed", http.StatusUnauthorized)
	})}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.Serve(listener) }()
	defer func() { _ = server.Close(); <-ended }()
	c, err := admin.NewClient("unix:"+path, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = c.Overview(t.Context()); err == nil || strings.Contains(err.Error(), "localhost") || !strings.Contains(err.Error(), "unix:"+path+" /overview answers with 401") {
		t.Errorf("a refusal at a socket: %v", err)
	}
}
