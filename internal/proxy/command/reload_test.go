package command

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/proxy/admin"
	"github.com/levada-io/levada/internal/proxy/proxytest"
)

// filed is a proxy with a configuration file, in which admin is the section of that name.
func filed(t *testing.T, section string) (p *runningProxy, write func(section string), name string) {
	t.Helper()
	backend := proxytest.NewBackend(t)
	name = filepath.Join(t.TempDir(), "proxy.yaml")
	write = func(section string) {
		t.Helper()
		text := fmt.Sprintf("listeners: [{address: \"127.0.0.1:0\"}]\nadmin: {%s}\ndrain: {period: 10ms}\nbackends: [{name: b, target: %q}]\n", section, backend.Address)
		if err := errors.Join(os.WriteFile(name+".new", []byte(text), 0o600), os.Rename(name+".new", name)); err != nil {
			t.Fatal(err)
		}
	}
	write(section)
	return proxying(t, "--config", name), write, name
}

// status asks for a path at an administrative address; 0 if nobody answers.
func status(t *testing.T, address, path, token string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return 0
	}
	_ = response.Body.Close()
	return response.StatusCode
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// TestReloadChangesTheAdminSection: addresses of administration are opened, closed and changed by a reload, also one that is in the way of the next, and calls go on.
// All of it waited for a restart.
func TestReloadChangesTheAdminSection(t *testing.T) {
	p, write, _ := filed(t, `address: "127.0.0.1:0"`)
	client := p.client()
	p.check(client)
	control := filepath.Join(t.TempDir(), "control.sock")
	token := file(t, "token", strings.Repeat("t", 32))
	first := p.admin

	write(fmt.Sprintf(`address: "127.0.0.1:0", control: "unix:%s"`, control))
	p.eventually("the control is at the socket", func() bool {
		c, err := admin.NewClient("unix:"+control, "")
		if err != nil {
			return false
		}
		_, err = c.Overview(t.Context())
		return err == nil
	})
	p.eventually("the first address has only the rest", func() bool {
		return status(t, first, "/overview", "") == http.StatusForbidden && status(t, first, "/livez", "") == http.StatusOK
	})

	write(`address: "127.0.0.1:0", tokenFile: ` + token)
	p.eventually("the state needs the token", func() bool { return status(t, first, "/overview", "") == http.StatusUnauthorized })
	p.eventually("and is given for it", func() bool { return status(t, first, "/overview", strings.Repeat("t", 32)) == http.StatusOK })
	if _, err := os.Stat(control); err == nil {
		t.Error("the socket of the control is still there")
	}

	all := freeAddress(t)
	write(fmt.Sprintf("address: %q", all))
	p.eventually("it is at another address", func() bool { return status(t, all, "/readyz", "") == http.StatusOK })
	p.eventually("and not at the first", func() bool { return status(t, first, "/readyz", "") == 0 })
	_, port, _ := net.SplitHostPort(all)
	write(fmt.Sprintf("address: %q", ":"+port)) // which cannot be opened beside the one of before
	p.eventually("the wider address is in force", func() bool { return strings.Contains(p.stderr.String(), `"address":"[::]:`+port) })
	p.eventually("it is served", func() bool { return status(t, all, "/readyz", "") == http.StatusOK })

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	write(fmt.Sprintf("address: %q", taken.Addr()))
	p.eventually("the refusal", func() bool {
		return strings.Contains(p.stderr.String(), "the changed configuration is not used") && strings.Contains(p.stderr.String(), "admin.address")
	})
	if code := status(t, all, "/readyz", ""); code != http.StatusOK {
		t.Errorf("after a change that was refused the address answers with %d", code)
	}
	p.check(client)
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestConfigFileThatGoes: that the file cannot be read any more is said once, in the log, the metrics and /readyz?verbose, and what was loaded goes on; that it has come back
// is said too, and a change that came with it is put in force. None of it was noticed.
func TestConfigFileThatGoes(t *testing.T) {
	p, write, name := filed(t, `address: "127.0.0.1:0"`)
	client := p.client()
	has := func(path, text string) func() bool {
		return func() bool { code, got := p.get(path); return code == http.StatusOK && strings.Contains(got, text) }
	}
	p.eventually("the file is readable", has("/metrics", "levada_proxy_config_file_readable 1\n"))
	p.eventually("and said to be", has("/readyz?verbose", "ok\n[+] configuration file "+name))
	if err := errors.Join(os.Remove(name), os.Mkdir(name, 0o700)); err != nil {
		t.Fatal(err)
	}
	const gone, back = "configuration file cannot be read, the configuration that was loaded before stays in force", "configuration file can be read again"
	p.eventually("the warning", func() bool { return strings.Contains(p.stderr.String(), gone) })
	p.eventually("the metric", has("/metrics", "levada_proxy_config_file_readable 0\n"))
	p.eventually("the note", has("/readyz?verbose", "it is a directory; the configuration that was loaded before stays in force"))
	p.check(client)
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	write(`address: "127.0.0.1:0", control: "127.0.0.1:0"`)
	p.eventually("the return", func() bool { return strings.Contains(p.stderr.String(), back) })
	p.eventually("the change", func() bool { code, _ := p.get("/overview"); return code == http.StatusForbidden })
	p.eventually("the metric again", has("/metrics", "levada_proxy_config_file_readable 1\n"))
	if n := strings.Count(p.stderr.String(), gone); n != 1 {
		t.Errorf("the warning came %d times", n)
	}
	p.check(client)
}

// TestConfigFileChecks: a file that is replaced is missing for an instant, which is no reason to warn; one that stays away is reported once each time.
func TestConfigFileChecks(t *testing.T) {
	f := configFile{path: filepath.Join(t.TempDir(), "proxy.yaml")}
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(f.path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	look := func(want change) {
		t.Helper()
		now = now.Add(time.Second)
		if got, err := f.check(now); got != want || (got == goneFile) != (err != nil) {
			t.Fatalf("a look gives %d, %v, want %d", got, err, want)
		}
	}
	put("one")
	f.use()
	look(unchanged)
	for range 2 {
		if err := os.Remove(f.path); err != nil {
			t.Fatal(err)
		}
		look(unchanged)
		put("one, changed")
		look(unchanged) // it may still be written
		look(changed)
		look(unchanged)

		if err := os.Remove(f.path); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			look(unchanged)
		}
		look(goneFile)
		for range 5 {
			look(unchanged)
		}
		put("two")
		look(backFile)
		look(changed)
		look(unchanged)
	}
}
