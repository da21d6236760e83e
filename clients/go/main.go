// Creates a job, watches it and downloads what it made:
//
//	generate ENDPOINT PROMPT OUTPUT
//
// TRIPTYCH_CA names the authority's certificate where the controller speaks TLS, TRIPTYCH_TOKEN_FILE the file of a token,
// TRIPTYCH_SERVICE_CONFIG that of docs/service_config.json.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	triptych "triptych/v1"
)

const (
	callTimeout = time.Minute
	pause       = 200 * time.Millisecond
	patience    = time.Minute // a controller restarts in less than a second; a machine takes longer
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: generate ENDPOINT PROMPT OUTPUT")
		os.Exit(2)
	}
	if err := generate(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", explain(err))
		os.Exit(1)
	}
}

func generate(endpoint, prompt, output string) error {
	connection, err := connect(endpoint)
	if err != nil {
		return err
	}
	defer connection.Close()
	client := triptych.NewGenerationServiceClient(connection)
	ctx := context.Background()

	width, height, seed := int32(64), int32(64), int64(1)
	id := make([]byte, 16) // or a repeated call would make a second job
	if _, err := rand.Read(id); err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	created, err := client.CreateJob(within, &triptych.CreateJobRequest{
		RequestId: fmt.Sprintf("%x", id),
		Request: &triptych.GenerationRequest{
			Prompt: prompt, Width: &width, Height: &height, Seed: &seed,
			OutputFormat: strings.TrimPrefix(filepath.Ext(output), "."),
		},
	})
	if err != nil {
		return err
	}
	job, err := watch(ctx, client, created.Job.JobId)
	if err != nil {
		return err
	}
	if job.State != triptych.JobState_JOB_STATE_SUCCEEDED {
		return fmt.Errorf("%s: %s", job.State, job.Error)
	}
	size, err := download(ctx, client, job.JobId, 0, output)
	if err == nil {
		fmt.Printf("%s: %d bytes\n", output, size)
	}
	return err
}

func connect(endpoint string) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64 << 20)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
	}
	if file := os.Getenv("TRIPTYCH_SERVICE_CONFIG"); file != "" {
		config, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		options = append(options, grpc.WithDefaultServiceConfig(string(config)))
	}
	if ca := os.Getenv("TRIPTYCH_CA"); ca != "" {
		tls, err := credentials.NewClientTLSFromFile(ca, "")
		if err != nil {
			return nil, err
		}
		options = append(options, grpc.WithTransportCredentials(tls))
	} else {
		options = append(options, grpc.WithInsecure())
	}
	if file := os.Getenv("TRIPTYCH_TOKEN_FILE"); file != "" {
		token, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		options = append(options, grpc.WithPerRPCCredentials(bearer(strings.TrimSpace(string(token)))))
	}
	return grpc.Dial(endpoint, options...)
}

type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// watch prints each change of a job until it is over, and returns it.
func watch(ctx context.Context, client triptych.GenerationServiceClient, jobID string) (*triptych.Job, error) {
	var job *triptych.Job
	err := resumed(func(progress func()) error {
		stream, err := client.WatchJob(ctx, &triptych.WatchJobRequest{JobId: jobID})
		for err == nil {
			var update *triptych.WatchJobResponse
			if update, err = stream.Recv(); err == nil {
				progress()
				job = update.Job
				fmt.Println(job.State, job.Step)
			}
		}
		return err
	})
	return job, err
}

// download writes one file of a job's result. It goes on where it was when the stream breaks.
func download(ctx context.Context, client triptych.GenerationServiceClient, jobID string, index uint32, path string) (uint64, error) {
	file, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	var artifact *triptych.Artifact
	var written uint64
	digest := sha256.New()
	err = resumed(func(progress func()) error {
		stream, err := client.DownloadResult(ctx, &triptych.DownloadResultRequest{
			JobId: jobID, ArtifactIndex: index, OffsetBytes: written,
		})
		for err == nil {
			var piece *triptych.DownloadResultResponse
			if piece, err = stream.Recv(); err == nil {
				progress()
				if piece.Artifact != nil {
					artifact = piece.Artifact
				}
				written += uint64(len(piece.Chunk))
				_, err = io.MultiWriter(file, digest).Write(piece.Chunk)
			}
		}
		return err
	})
	if err == nil && !bytes.Equal(digest.Sum(nil), artifact.Sha256) {
		err = fmt.Errorf("%s isn't what was stored", path)
	}
	return written, err
}

// resumed calls read until it ends with io.EOF, again where its stream was cut. It has to call its argument whenever
// something has come.
func resumed(read func(progress func()) error) error {
	end := time.Now().Add(patience)
	for {
		err := read(func() { end = time.Now().Add(patience) })
		if err == io.EOF {
			return nil
		}
		if !isBreak(err) || time.Now().After(end) {
			return err
		}
		time.Sleep(pause)
	}
}

// isBreak says whether a stream was cut rather than refused: directly, or by a proxy that lost its server.
func isBreak(err error) bool {
	said := status.Convert(err)
	isReset := said.Code() == codes.Internal && strings.Contains(said.Message(), "RST_STREAM")
	return said.Code() == codes.Unavailable || isReset
}

// explain returns an error's sentence, after the reason that docs/errors.md lists and the field that is refused.
func explain(err error) string {
	parts := []string{}
	for _, detail := range status.Convert(err).Details() {
		switch known := detail.(type) {
		case *errdetails.ErrorInfo:
			parts = append(parts, known.Reason)
		case *errdetails.BadRequest:
			for _, violation := range known.FieldViolations {
				parts = append(parts, violation.Field, violation.Description)
			}
		case *errdetails.RetryInfo:
			parts = append(parts, fmt.Sprint("wait ", known.RetryDelay.AsDuration()))
		}
	}
	return strings.Join(append(parts, status.Convert(err).Message()), " ")
}
