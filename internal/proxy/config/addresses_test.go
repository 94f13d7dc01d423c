package config_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/proxy/config"
)

// TestAddressesThatCollide: two addresses that the kernel does not open together, or of which the second socket would replace the first, are one error with the place of
// both. A listener and admin.control at one Unix socket were accepted: the control took the listener's file, and clients found an HTTP server there.
func TestAddressesThatCollide(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ text, at, says string }{
		"a listener and the control at a Unix socket": {
			"listeners: [{address: 'unix:/run/a.sock'}]\nadmin: {control: 'unix:/run/a.sock'}", "4:18: admin.control", `is the address of listeners[0] (line 3) too`},
		"the same in another form": {
			"listeners: [{address: 'unix:///run/a.sock'}]\nadmin: {control: 'unix:/run/x/../a.sock'}", "4:18: admin.control", `is the address of listeners[0] (line 3) too`},
		"a relative and an absolute path": {
			fmt.Sprintf("listeners: [{address: 'unix:a.sock'}, {address: 'unix:%s/a.sock'}]", here), "3:49: listeners[1].address", `is the address of listeners[0] (line 3) too`},
		"the control at a folder": {
			"admin: {control: 'unix:/run/'}", "3:18: admin.control", `expected unix:PATH`},
		"the control and the address of admin": {
			"admin: {address: ':9901', control: '127.0.0.1:9901'}", "3:36: admin.control", `the address of admin.address (line 3), have the same port`},
		"localhost and its address": {
			"listeners: [{address: 'localhost:8080'}, {address: '127.0.0.1:08080'}]", "3:52: listeners[1].address", `is the address of listeners[0] (line 3) too`},
		"an address of IPv6 in two forms": {
			"listeners: [{address: '[::1]:8080'}, {address: '[0:0::1]:8080'}]", "3:48: listeners[1].address", `is the address of listeners[0] (line 3) too`},
		"a listener and admin": {
			"listeners: [{address: ':9901'}]", "admin.address", `have the same port`},
		"two passed sockets": {
			"listeners: [{address: 'systemd:a'}, {address: 'systemd:a'}]", "3:47: listeners[1].address", `is the address of listeners[0] (line 3) too`},
		"the access log at a socket": {
			"listeners: [{address: 'unix:/run/a.sock'}]\naccessLog: {path: /run/a.sock}", "4:19: accessLog.path", `is the Unix socket of listeners[0] (line 3)`},
		"the access log at a key": {
			"listeners: [{address: ':1', tls: {certificate: a.crt, key: a.key}}]\naccessLog: {path: ./a.key}", "4:19: accessLog.path", `is the file of listeners[0].tls.key (line 3) too`},
		"a target that is the admin address": {
			"admin: {address: '127.0.0.1:7'}\nroutes: [{backend: b}]", "2:30: backends[0].target", `is admin.address (line 3), which serves no gRPC`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse("proxy.yaml", []byte("\nbackends: [{name: b, target: '127.0.0.1:7'}]\n"+c.text+"\n"))
			var problems config.Problems
			if !errors.As(err, &problems) || len(problems) != 1 {
				t.Fatalf("want one problem, got %v", err)
			}
			if got := problems[0].Error(); !strings.Contains(got, c.at) || !strings.Contains(got, c.says) || !strings.HasPrefix(got, "proxy.yaml:") && !strings.Contains(name, "listener and admin") {
				t.Errorf("got %q, want %q and %q", got, c.at, c.says)
			}
		})
	}
}

// TestAddressesThatDoNotCollide: what the kernel opens together is no error.
func TestAddressesThatDoNotCollide(t *testing.T) {
	parse(t, `
listeners: [{address: "127.0.0.1:8080"}, {address: "[::1]:8080"}, {address: "10.0.0.1:8080"}, {address: ":0"}, {address: ":0"}, {address: "unix:/run/a"}, {address: "systemd:a"}]
admin: {address: "127.0.0.1:8081", control: "unix:/run/b"}
backends: [{name: b, target: "10.0.0.2:8080"}]
`)
}

// TestSocketsThroughASymbolicLink: /run/a and /var/run/a are one socket where /var/run is a symbolic link. It is found when files are looked at.
func TestSocketsThroughASymbolicLink(t *testing.T) {
	dir := t.TempDir()
	folder, link := filepath.Join(dir, "run"), filepath.Join(dir, "link")
	if err := errors.Join(os.Mkdir(folder, 0o700), os.Symlink(folder, link)); err != nil {
		t.Fatal(err)
	}
	c := parse(t, fmt.Sprintf("listeners: [{address: 'unix:%s/a'}]\nadmin: {control: 'unix:%s/a'}\nbackends: [{name: b, target: '10.0.0.2:8080'}]", folder, link))
	problems := c.CheckFiles()
	if len(problems) != 1 || !strings.Contains(problems[0].Error(), "proxy.yaml:2:18: admin.control") || !strings.Contains(problems[0].Error(), "is the address of listeners[0] (line 1) too") {
		t.Errorf("got %v", problems)
	}
}
