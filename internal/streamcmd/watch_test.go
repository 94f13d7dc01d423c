//go:build linux

package streamcmd

import (
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/levada-io/levada/internal/kubeclient/kubeapi"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/sqlitestore"
)

// The lease of a worker whose pod is gone ends, with a watcher that finds API server and namespace in a kubeconfig.
func TestStreamWatch(t *testing.T) {
	api := kubeapi.Start(t, "orders")
	access := api.Config("watcher", "system:masters")
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: access.Host, CertificateAuthority: access.CAFile}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {ClientCertificate: access.CertFile, ClientKey: access.KeyFile}},
		Contexts:       map[string]*clientcmdapi.Context{"there": {Cluster: "c", AuthInfo: "u", Namespace: "orders"}, "elsewhere": {Cluster: "nowhere"}},
		CurrentContext: "elsewhere",
	}, kubeconfig); err != nil {
		t.Fatal(err)
	}
	pods := api.Admin.CoreV1().Pods("orders")
	pod, err := pods.Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "worker-1", Labels: map[string]string{"app": "orders"}},
		Spec: corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{Name: "worker", Image: "worker:1"}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "jobs.db")
	store, err := sqlitestore.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if _, err := store.Submit(t.Context(), stream.Job{ID: "job", Stream: "orders"}); err != nil {
		t.Fatal(err)
	}
	owner := stream.Owner{Pod: pod.Name, PodUID: string(pod.UID), Container: "worker", Incarnation: "1"}
	if got, err := store.Claim(t.Context(), stream.Claim{Owner: owner, TTL: time.Hour, Max: 1}); err != nil || len(got) != 1 {
		t.Fatalf("claimed %v, error %v", got, err)
	}

	watcher := start(t, "stream", "watch", "--store", path, "--kubeconfig", kubeconfig, "--context", "there", "--selector", "app=orders", "--metrics-listen", "127.0.0.1:0", "--log-format", "text")
	var address string
	watcher.eventually("it says what it does", func() bool {
		found := regexp.MustCompile(`namespace=orders.* metrics=(\S+)`).FindStringSubmatch(watcher.stderr.String())
		if found != nil {
			address = found[1]
		}
		return found != nil
	})
	get := func(path string) (int, string) {
		t.Helper()
		res, err := http.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(text)
	}
	watcher.eventually("it is ready", func() bool { code, _ := get("/readyz"); return code == http.StatusNoContent })
	if st, err := store.Get(t.Context(), "job"); err != nil || time.Until(st.LeaseUntil) < 50*time.Minute {
		t.Errorf("while its pod lives, the job's lease ends at %v, error %v", st.LeaseUntil, err)
	}
	now := int64(0)
	if err := pods.Delete(t.Context(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
	watcher.eventually("the lease ends", func() bool {
		st, err := store.Get(t.Context(), "job")
		return err == nil && !time.Now().Before(st.LeaseUntil)
	})
	watcher.eventually("the death is counted", func() bool {
		_, text := get("/metrics")
		return strings.Contains(text, "levada_stream_watch_leases_total 1\n")
	})
}
