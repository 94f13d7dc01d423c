package pipelinecmd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/testnats"
)

const copyPipeline = `apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: copy}
spec:
  vertices:
  - {name: in, source: {file: {path: words.txt}}}
  - {name: out, sink: {file: {path: words.out}}}
  edges:
  - {from: in, to: out}
`

// TestCredentialsAppearNowhere runs a pipeline at a broker that wants a password, given in each way, and at one that refuses it, and looks for the password in
// all that is printed.
func TestCredentialsAppearNowhere(t *testing.T) {
	const password = "s3cr3t-pw"
	server := testnats.Server(t, testnats.Login("joe:"+password), testnats.Settings("authorization { user: joe, password: "+password+" }"))
	address := server.DSN()[strings.LastIndexAny(server.DSN(), "@/")+1:]
	t.Chdir(t.TempDir())
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("copy.yaml", copyPipeline)
	write("words.txt", "one\ntwo\n")
	write("password", password+"\n")
	write("wrong", "wr0ng-pw\n")
	n := 0
	for _, c := range []struct {
		name, env string
		args      []string
		code      int
		says      string
	}{
		{"in the URL", "", []string{"--nats", "nats://joe:" + password + "@" + address}, 0, "LEVADA_NATS"},
		{"in the environment", "nats://joe:" + password + "@" + address, nil, 0, ""},
		{"in a file", "", []string{"--nats", "nats://" + address, "--nats-user", "joe", "--nats-password-file", "password"}, 0, ""},
		{"a wrong one", "nats://joe:wr0ng-pw@" + address, nil, 1, "uthorization"},
		{"a file that is missing", "", []string{"--nats", "nats://" + address, "--nats-user", "joe", "--nats-password-file", "passwd"}, 2, "--nats-password-file"},
		{"without a broker", "", []string{"--nats-user", "joe", "--nats-password-file", "password"}, 2, "--nats"},
		{"two ways", "", []string{"--nats", "nats://" + address, "--nats-token-file", "password", "--nats-creds", "password"}, 2, "exclude each other"},
	} {
		for _, format := range []string{"text", "json"} {
			t.Run(c.name+" "+format, func(t *testing.T) {
				n++
				if c.env != "" {
					t.Setenv("LEVADA_NATS", c.env)
				}
				data := filepath.Join(t.TempDir(), fmt.Sprint("data", n))
				o := levada(t, append([]string{"run", "copy.yaml", "--data", data, "--log-level", "debug", "--log-format", format}, c.args...)...)
				if o.Code != c.code || !strings.Contains(o.Stderr, c.says) {
					t.Errorf("exit code %d, want %d with %q:\n%s", o.Code, c.code, c.says, o.Stderr)
				}
				for _, secret := range []string{password, "wr0ng-pw"} {
					if strings.Contains(o.Stdout+o.Stderr, secret) {
						t.Errorf("%q is in the output:\n%s%s", secret, o.Stdout, o.Stderr)
					}
				}
			})
		}
	}
}
